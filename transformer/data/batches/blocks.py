"""Batches of a split of any size in constant memory: block by block, where each block is a shard of its tokens.

Blocks come in an order given by (seed, epoch), and within a block the order is that of its own batches. So a batch is a
pure function of (seed, step), while only the block of the step and the next one are in memory.
"""

import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches import base, facts, rows_of_tokens, shapes, too_long
from transformer.data.batches.base import BLOCKS, Batch, Batches, permutation
from transformer.data.batches.bucketed import BucketedBatches
from transformer.data.batches.facts import Facts, added
from transformer.data.batches.rows_of_tokens import TokenRows, stacked
from transformer.data.batches.shards import Corpus
from transformer.data.batches.too_long import TooLong, refuse
from transformer.data.caching import Key, cache_root
from transformer.data.preparing import prepare
from transformer.errors import UserError

IN_MEMORY = 2  # blocks: this one, and the next or the last one
FACTS = "facts.json"
# Keys of the config that facts depend on.
KEYS = ("max_len", "buckets", "batch_tokens", "row_multiple", "too_long", "corruption")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of batches, and what all of its blocks have in common."""

    made: Any
    corpus: Corpus
    columns: tuple[np.ndarray, ...] = ()
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def batches(self, number: int, data: DataConfig, seed: int) -> Any:
        """The batches of a shard."""
        shard = self.corpus.shards[number]
        columns = (column[shard.first : shard.stop] for column in self.columns)
        return self.made(self.corpus[number], *columns, data=data, seed=seed, **self.others)

    def unlabelled(self, number: int, data: DataConfig) -> Any:
        """The same with zeros in the columns; examples that are refused are left out, to be counted first."""
        shard = self.corpus.shards[number]
        columns = (np.zeros(shard.stop - shard.first, column.dtype) for column in self.columns)
        if data.too_long == "refuse" and "drop" in self.made.rules:
            data = dataclasses.replace(data, too_long="drop")
        return self.made(self.corpus[number], *columns, data=data, seed=0, **self.others)

    def alike(self, data: DataConfig) -> "Kind":
        """The kind whose shards have the shapes of the first one, so that few programs are compiled for all."""
        if not issubclass(self.made, BucketedBatches) or "shapes" in self.others:
            return self
        return dataclasses.replace(self, others={**self.others, "shapes": self.unlabelled(0, data).shapes})

    def facts(self, data: DataConfig) -> list[Facts]:
        """Those of each shard, cached. They are the same for every seed."""
        read = DataConfig(**{name: getattr(data, name) for name in KEYS})
        own = [sys.modules[each.__module__] for each in _ours(self.made)]
        code = [base, facts, rows_of_tokens, shapes, too_long, Find, *own]
        inputs = [
            self.corpus.folder.name,
            _name(self.made),
            self.others.get("shapes"),
            [getattr(read, name) for name in KEYS],
        ]
        key = Key(cache_root(data) / "plans", inputs, code)
        kept = dataclasses.replace(self, columns=tuple(np.zeros(0, column.dtype) for column in self.columns))
        paths = prepare(key.path, Find(kept, read), self.corpus.sizes(), "planning an epoch", " tokens")
        return [Facts.stored(json.loads((path / FACTS).read_text())) for path in paths]


def _ours(kind: Any) -> list[type]:
    """A class and those that it is made of, of this project and of plugins."""
    return [own for own in kind.__mro__ if own.__module__ not in ("builtins", "abc", "typing")]


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclasses.dataclass(frozen=True)
class Find:
    """Finds the facts of shards (`preparing.Make`)."""

    kind: Kind
    data: DataConfig

    def __call__(self, number: int, folder: Path, told: Callable[[int], Any]) -> None:
        (folder / FACTS).write_text(json.dumps(self.kind.unlabelled(number, self.data).facts._asdict()))
        told(self.kind.corpus.sizes()[number])


class Blocks(Batches):
    """The batches of some shards (`numbers`) of a corpus; see the module. Block 0 has the seed of the run, and every
    other one a seed that follows from it."""

    too_long: TooLong

    def __init__(self, kind: Kind, numbers: range, *, data: DataConfig, seed: int) -> None:
        super().__init__(data=data, seed=seed)
        self._kind, self._numbers = kind.alike(data), numbers
        found = self._kind.facts(data)
        self._facts = [found[number] for number in numbers]
        shards = [kind.corpus.shards[number] for number in numbers]
        twice = sum(shard.stop - shard.first for shard in shards) - (shards[-1].stop - shards[0].first)
        self.facts = added(self._facts, twice)
        self.too_long = self.facts.too_long
        if data.too_long == "refuse" and self.too_long.longer and "drop" in kind.made.rules:
            self._refuse()
        # Where the numbers of the examples (or chunks) of each block begin in the split.
        self._begins = np.cumsum([0, *(each.rows for each in found)])[numbers.start :]
        self._opened: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "next_block")
        self.cut_to = self._open(0).cut_to

    def _refuse(self) -> None:
        longest = max(range(len(self._facts)), key=lambda block: self._facts[block].too_long.longest)
        number = self._numbers[longest]
        lengths = np.max([tokens.lengths for tokens in self._kind.corpus[number].values()], axis=0)
        refuse(self.too_long, self._kind.corpus.shards[number].first + int(lengths.argmax()), self._kind.made.rules)

    # --- Blocks in memory

    def _seed_of(self, block: int) -> int:
        if not block:
            return self.seed
        key = np.array([self.seed % 2**64, BLOCKS], np.uint64)
        return int(np.random.Philox(key=key, counter=np.array([block, 0, 0, 0], np.uint64)).random_raw())

    def _begin(self, block: int) -> "Future[Any]":
        """A block, as soon as a thread has opened it."""
        with self._lock:
            future = self._opened.pop(block, None)
            if future is None:
                make = self._kind.batches
                future = self._thread.submit(make, self._numbers[block], self.data, self._seed_of(block))
            self._opened[block] = future  # now the last one
            while len(self._opened) > IN_MEMORY:
                self._opened.pop(next(iter(self._opened)))
            return future

    def _open(self, block: int) -> Any:
        return self._begin(block).result().part(self._shards, self._of)

    def _each(self) -> Iterator[tuple[int, Any]]:
        return ((block, self._open(block)) for block in range(len(self._facts)))

    def _blocks(self, epoch: int) -> np.ndarray:
        """The order of the blocks in an epoch."""
        key = np.array([self.seed % 2**64, epoch], np.uint64)
        # Block 0 draws its own order with the same key, and counters that never reach these.
        return permutation(np.random.Philox(key=key, counter=np.array([0, 0, 0, 2], np.uint64)), len(self._facts))

    # --- What every class of batches has

    @property
    def steps_per_epoch(self) -> int:
        if not self.facts.steps:
            raise UserError(
                f"None of {self.too_long.of:,} {self.too_long.noun} that holds a token fits into data.max_len="
                f"{self.data.max_len}: raise it, or give some text."
            )
        return self.facts.steps

    @property
    def report(self) -> dict[str, Any]:
        assert self.steps_per_epoch, "or else it raises"
        return self.facts.report(sides=not isinstance(self._open(0), TokenRows))

    @property
    def evaluation_shapes(self) -> list[tuple[int, ...]]:
        return list(self.facts.evaluated)

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The blocks of an epoch, each with the number of the step after its last one."""
        order = self._blocks(epoch)
        return [(int(block), end) for block, end in zip(order, self._ends("steps", order), strict=True)]

    def _ends(self, what: str, order: np.ndarray) -> np.ndarray:
        return np.cumsum([getattr(self._facts[block], what) for block in order.tolist()])

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        plan = self._plan(epoch)
        place = int(np.searchsorted([end for _, end in plan], index, side="right"))
        block, end = plan[place]
        steps = self._facts[block].steps
        local = index - (int(end) - steps)
        if 2 * local + 1 >= steps:  # opening the next one takes a second, in which the others of this one are used
            self._begin_after(epoch, place)
        return self._global(block, self._open(block).batch(epoch * steps + local))

    def _begin_after(self, epoch: int, place: int) -> None:
        ahead = [block for block, _ in self._plan(epoch)[place + 1 :]] + [block for block, _ in self._plan(epoch + 1)]
        self._begin(next(block for block in ahead if self._facts[block].steps))

    def rows(self, numbers: np.ndarray) -> Batch:
        """See `TokenRows.rows`."""
        epochs, places = np.divmod(numbers, self.facts.rows)
        made = []
        for epoch in np.unique(epochs).tolist():
            order, inside = self._blocks(epoch), places[epochs == epoch]
            ends = self._ends("rows", order)
            owners = np.searchsorted(ends, inside, side="right")
            for owner in np.unique(owners).tolist():
                block = int(order[owner])
                count = self._facts[block].rows
                own = inside[owners == owner] - (int(ends[owner]) - count)
                if 2 * own[-1] + 1 >= count:
                    following = [*order[owner + 1 :], *self._blocks(epoch + 1)]
                    self._begin(next(int(other) for other in following if self._facts[other].rows))
                made.append(self._open(block).rows(epoch * count + own))
        return stacked(made)

    def _make(self, width: Any, rows: np.ndarray) -> Batch:
        raise NotImplementedError("the batches of a block make them")

    @property
    def evaluated(self) -> np.ndarray:
        shards = (self._kind.corpus.shards[number] for number in self._numbers)
        first = [shard.first for shard in shards]
        return np.unique(np.concatenate([first[block] + each.evaluated for block, each in self._each()]))

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """That of every block in turn."""
        for block, each in self._each():
            for batch in each.evaluation(max_len):
                yield self._global(block, batch)

    def longer_than(self, max_len: int) -> int:
        return sum(each.longer_than(max_len) for _, each in self._each())

    def _global(self, block: int, batch: Batch) -> Batch:
        """The batch of a block, with the numbers of examples or chunks in the split."""
        if "example_ids" not in batch:
            return batch
        ids = batch["example_ids"]
        return batch | {"example_ids": np.where(ids >= 0, ids + self._begins[block], -1).astype(np.int32)}
