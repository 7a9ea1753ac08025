"""Batches of a mixture: each member has a fixed share of the rows, and its own order and epochs."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import MEMBERS, Batch, Batches, permutation
from transformer.data.batches.blocks import Blocks, Kind
from transformer.data.batches.facts import added
from transformer.data.batches.rows_of_tokens import TokenRows
from transformer.data.batches.shards import Corpus
from transformer.errors import UserError

CYCLE = 2048  # rows, or steps, in which the shares hold exactly


def in_blocks(
    kind: Callable[..., Batches], corpus: Corpus, *columns: np.ndarray, data: DataConfig, seed: int, **others: Any
) -> Batches:
    """Batches of a class that takes tokens (and `columns`, one value for each example, such as labels): of one shard,
    that class; of several, `Blocks` of it."""
    if corpus.members:
        return Mixed(Kind(kind, corpus, columns, others), data=data, seed=seed)
    if len(corpus) == 1:
        return kind(corpus[0], *columns, data=data, seed=seed, **others)
    return Blocks(Kind(kind, corpus, columns, others), range(len(corpus)), data=data, seed=seed)


class Mixed(Batches):
    """The members of a mixture of a corpus, with shares of the rows in proportion to their weights.

    The rows of all steps are numbered, and in each cycle of CYCLE rows a member has a fixed number, in an order given
    by (seed, cycle). The n-th row of a member is the n-th of its own sequence of epochs, so that one with a large
    weight for its size is read more often. Where rows have several widths (pairs, texts with classes, spans), whole
    steps are given to members instead of rows. An epoch has as many rows (or steps) as those of all members together.
    """

    def __init__(self, kind: Kind, *, data: DataConfig, seed: int) -> None:
        super().__init__(data=data, seed=seed)
        kind, members = kind.alike(data), kind.corpus.members
        self._weights = {name: weight for name, (weight, _) in members.items()}
        self._members = {
            name: Blocks(kind, numbers, data=data, seed=self._seed_of(place))
            for place, (name, (_, numbers)) in enumerate(members.items())
        }
        for name, member in self._members.items():
            if not member.facts.steps:
                raise UserError(f"{name!r} in data.mix has no example that fits into data.max_len={data.max_len}.")
        self._counts = shares(self._weights, CYCLE)
        self.facts = added([member.facts for member in self._members.values()])
        self.too_long, self.cut_to = self.facts.too_long, next(iter(self._members.values())).cut_to
        self._by_rows = issubclass(kind.made, TokenRows)
        self._together = self._rows_of(data.max_len) if self._by_rows else 1
        self._cycle = functools.lru_cache(maxsize=4)(self._order)

    def _seed_of(self, place: int) -> int:
        if not place:
            return self.seed
        key = np.array([self.seed % 2**64, MEMBERS], np.uint64)
        return int(np.random.Philox(key=key, counter=np.array([place, 0, 0, 0], np.uint64)).random_raw())

    def part(self, shards: Sequence[int], of: int) -> Self:
        part = super().part(shards, of)
        if not self._by_rows:
            part._members = {name: member.part(shards, of) for name, member in self._members.items()}
        return part

    def _order(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each row of a cycle, its member, and its number among those of its member in the cycle."""
        key = np.array([self.seed % 2**64, MEMBERS - 1], np.uint64)
        bits = np.random.Philox(key=key, counter=np.array([0, 0, cycle, 0], np.uint64))
        owners = np.repeat(np.arange(len(self._counts)), self._counts)[permutation(bits, CYCLE)]
        order = np.argsort(owners, kind="stable")
        numbers = np.empty(CYCLE, np.int64)
        numbers[order] = np.concatenate([np.arange(count) for count in self._counts])
        return owners, numbers

    def _owned(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each of these rows, numbered from the first step on, its member, and its number in that."""
        cycles, places = np.divmod(slots, CYCLE)
        owners, numbers = np.empty_like(slots), np.empty_like(slots)
        for cycle in np.unique(cycles).tolist():
            inside = cycles == cycle
            whose, which = self._cycle(cycle)
            owners[inside], numbers[inside] = whose[places[inside]], which[places[inside]]
        return owners, cycles * np.array(self._counts)[owners] + numbers

    def batch(self, step: int) -> Batch:
        members = list(self._members.values())
        if not self._by_rows:
            owners, numbers = self._owned(np.array([step]))
            return members[int(owners[0])].batch(int(numbers[0]))
        slots = self._share(step * self._together + np.arange(self._together))
        owners, numbers = self._owned(slots)
        made: Batch = {}
        for number, member in enumerate(members):
            places = np.flatnonzero(owners == number)
            if len(places):
                for key, rows in member.rows(numbers[places]).items():
                    made.setdefault(key, np.empty((len(slots), *rows.shape[1:]), rows.dtype))[places] = rows
        return made

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.facts.rows // self._together) if self._by_rows else self.facts.steps

    @property
    def report(self) -> dict[str, Any]:
        """`mix` says of each member its `weight`, the `tokens` of its training part, its `epochs` in one epoch of the
        mixture, and its `share` of the tokens of a batch on average."""
        units = {name: self._units(member) for name, member in self._members.items()}
        drawn = {name: count / CYCLE for name, count in zip(self._members, self._counts, strict=True)}
        tokens = {name: sum(member.facts.filled) for name, member in self._members.items()}
        held = {name: drawn[name] * tokens[name] / units[name] for name in self._members}
        mix = {
            name: {
                "weight": weight,
                "tokens": tokens[name],
                "epochs": self.steps_per_epoch * self._together * drawn[name] / units[name],
                "share": held[name] / sum(held.values()),
            }
            for name, weight in self._weights.items()
        }
        steps = {"steps_per_epoch": self.steps_per_epoch}
        return self.facts.report(sides=not self._by_rows) | steps | {"mix": mix}

    def _units(self, member: Blocks) -> int:
        """The rows of an epoch of a member, or its steps, where a step is given to one."""
        return member.facts.rows if self._by_rows else member.facts.steps

    @property
    def evaluation_shapes(self) -> list[tuple[int, ...]]:
        return list(self.facts.evaluated)

    @property
    def evaluated(self) -> np.ndarray:
        return np.concatenate([member.evaluated for member in self._members.values()])

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """That of every member in turn."""
        for member in self._members.values():
            yield from member.part(self._shards, self._of).evaluation(max_len)

    def longer_than(self, max_len: int) -> int:
        return sum(member.longer_than(max_len) for member in self._members.values())

    def _epoch(self, epoch: int) -> list[tuple[Any, np.ndarray]]:
        raise NotImplementedError("a mixture has no plan of its own")

    def _make(self, width: Any, rows: np.ndarray) -> Batch:
        raise NotImplementedError("its members make the batches")


def shares(weights: Mapping[str, float], total: int) -> list[int]:
    """How many of `total` rows each member has: in proportion to its weight, by the largest remainders. UserError: the
    smallest weight gives none."""
    exact = np.array(list(weights.values()), float) / sum(weights.values()) * total
    counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - counts), kind="stable")[: total - int(counts.sum())]
    counts[rest] += 1
    if not counts.all():
        name = list(weights)[int(counts.argmin())]
        raise UserError(
            f"{name!r} in data.mix has less than one of {total} rows with a weight of {weights[name]}: raise it, or "
            "leave it out."
        )
    return counts.tolist()


def mixture_line(mix: Mapping[str, Mapping[str, float]]) -> str:
    """What a batch holds on average, for the log."""
    told = [f"{name} {of['share']:.1%} of the tokens ({of['epochs']:.3g} times an epoch)" for name, of in mix.items()]
    return f"mixture: {', '.join(told)}"
