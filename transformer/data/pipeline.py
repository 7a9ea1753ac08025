"""Examples -> cached tokens -> batches, where a batch is a pure function of (seed, step).

An epoch is a plan over token lengths: made from (seed, epoch), never from what was read before. So a checkpoint needs
only the step, a resumed run sees the same batches, and each of P processes takes its rows of the same global batch.
All arrays of a batch are int32; segment 0 is padding. `PairBatches` is for translation, `PackedBatches` for language
models.
"""

import abc
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from transformer.config import DataConfig, UserError
from transformer.data.caching import cache_root, locked, writing
from transformer.data.sources import Source
from transformer.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]

PACKING = 2**64 - 1  # stands in the place of the epoch in the key of the packing's random numbers
MAP_ABOVE = 2**28  # bytes; larger token files are mapped into memory instead of read


# --- Tokens


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many texts, end to end, without special tokens: text i is flat[offsets[i]:offsets[i + 1]]."""

    flat: np.ndarray  # int32
    offsets: np.ndarray  # int64, one more than there are texts

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Tokens":
        lengths = [len(sequence) for sequence in sequences]
        flat = np.fromiter((i for sequence in sequences for i in sequence), np.int32, count=sum(lengths))
        return cls(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def tokenize(
    source: Source, split: str, fields: Sequence[str], tokenizer: Tokenizer, data: DataConfig
) -> dict[str, Tokens]:
    """Tokens of the fields of a split, in that order, from the cache where they have been made before."""
    names = [source.field(field) for field in fields]
    examples = source.split(split)  # before the cache is asked, for its UserError
    identity = json.dumps([source.fingerprint, split, names, tokenizer.fingerprint])
    folder = cache_root(data) / "tokens" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    with locked(folder):
        if not folder.exists():
            parts: dict[str, list[Tokens]] = {name: [] for name in names}
            for start in range(0, len(examples), 4096):
                chunk = examples.many(range(start, min(start + 4096, len(examples))))
                for name in names:
                    parts[name].append(Tokens.of(tokenizer.encode_batch([example[name] for example in chunk])))
            with writing(folder) as temporary:
                temporary.mkdir()
                for number, name in enumerate(names):
                    lengths = np.concatenate([part.lengths for part in parts[name]])
                    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
                    np.save(temporary / f"{number}.offsets.npy", offsets)
                    np.save(temporary / f"{number}.flat.npy", np.concatenate([part.flat for part in parts[name]]))
    tokens = {}
    for number, name in enumerate(names):
        flat = folder / f"{number}.flat.npy"
        ids = np.load(flat, mmap_mode="r") if flat.stat().st_size > MAP_ABOVE else np.load(flat)
        tokens[name] = Tokens(ids, np.load(folder / f"{number}.offsets.npy"))
    return tokens


# --- Batches


class Batches(abc.ABC):
    """Batches of one split. Subclasses say which rows a step has (`_epoch`) and what a row looks like (`_make`).

    A row is a number, -1 for a row of padding only; a plan is a list of (width, rows), one entry a step.
    """

    def __init__(self, seed: int, data: DataConfig, process_index: int, process_count: int) -> None:
        _check(data, process_index, process_count)
        self.seed = seed
        self.data = data
        self._process = (process_index, process_count)
        # Two epochs, as a prefetching thread may be one ahead.
        self._plan = functools.lru_cache(maxsize=2)(self._epoch)

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same number in each. UserError: there is no example to train on."""

    @property
    @abc.abstractmethod
    def report(self) -> dict[str, Any]:
        """Of the training batches: examples `kept`, `dropped` for length, `fill` (the share of positions that are not
        padding), `shapes` (rows, width) over all processes, and `steps_per_epoch`."""

    @abc.abstractmethod
    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]: ...

    @abc.abstractmethod
    def _make(self, width: int, rows: np.ndarray) -> Batch: ...

    @abc.abstractmethod
    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every example exactly once, in a few fixed shapes; the last rows of a shape may be padding."""

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of a step (0, 1, ...); depends on the seed and the step only."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._local(*self._plan(epoch)[index])

    def iterate(self, start: int, stop: int) -> grain.DatasetIterator[Batch]:
        """The batches of steps start, ..., stop - 1, made ahead by one thread, which ends with the iterator.

        `close()` ends it early. Its own state is not needed for resuming: the step is enough.
        """
        steps = grain.MapDataset.range(start, stop).map(self.batch)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))

    def _local(self, width: int, rows: np.ndarray) -> Batch:
        index, count = self._process
        share = len(rows) // count
        return self._make(width, rows[index * share : (index + 1) * share])

    def _rows_of(self, width: int) -> int:
        """Rows of a batch of that width: about batch_tokens positions, and a multiple of row_multiple."""
        multiple = self.data.row_multiple
        return max(multiple, self.data.batch_tokens // width // multiple * multiple)


def _check(data: DataConfig, process_index: int, process_count: int) -> None:
    if data.max_len < 2 or data.row_multiple < 1 or data.batch_tokens < 1:
        raise UserError(
            f"data.max_len={data.max_len}, data.batch_tokens={data.batch_tokens} and data.row_multiple="
            f"{data.row_multiple} must be positive, max_len at least 2."
        )
    if data.row_multiple % process_count:
        raise UserError(
            f"data.row_multiple={data.row_multiple} cannot be shared by {process_count} processes: make it a multiple "
            f"of {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")


def _philox(seed: int, epoch: int) -> np.random.Philox:
    # Only raw bits are drawn: their stream is the same in every NumPy version, that of the distributions is not.
    return np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))


def _permutation(bits: np.random.Philox, size: int) -> np.ndarray:
    return np.argsort(bits.random_raw(size), kind="stable") if size else np.zeros(0, np.int64)


def _cut(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Cuts into pieces of `count`, the last filled with -1."""
    padded = np.full(-(-len(rows) // count) * count, -1, np.int64)
    padded[: len(rows)] = rows
    return list(padded.reshape(-1, count))


# --- Translation


class PairBatches(Batches):
    """Pairs in buckets: a batch holds pairs of similar length, padded to the width of their bucket.

    `tokens` are those of the source and of the target field, in this order. A pair's length is that of its longer
    side, EOS (or BOS) included; longer ones than max_len are left out of training and never of `evaluation`. What
    does not fill a batch goes up into the next bucket, so that only one batch of an epoch has rows of padding.

    Keys: inputs, input_positions, input_segments [B, S]; target_inputs (BOS first), targets (EOS last),
    target_positions, target_segments [B, L], S = L = the bucket; example_ids [B], -1 on rows of padding.
    """

    def __init__(
        self,
        tokens: Mapping[str, Tokens],
        *,
        seed: int,
        data: DataConfig,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        super().__init__(seed, data, process_index, process_count)
        self._source, self._target = tokens.values()
        self._widths = _buckets(data)
        self._lengths = np.maximum(self._source.lengths, self._target.lengths) + 1
        self._kept = np.flatnonzero(self._lengths <= data.max_len)
        self._bucket_of = np.searchsorted(self._widths, self._lengths)
        # (width, batches) of the buckets in use; the counts do not depend on the epoch.
        self._counts: list[tuple[int, int]] = []
        carried = 0
        sizes = np.bincount(self._bucket_of[self._kept], minlength=len(self._widths))
        self._used = np.flatnonzero(sizes)
        for bucket in self._used:
            size, rows = carried + int(sizes[bucket]), self._rows_of(self._widths[bucket])
            last = bucket == self._used[-1]
            self._counts.append((self._widths[bucket], -(-size // rows) if last else size // rows))
            carried = size % rows

    @property
    def steps_per_epoch(self) -> int:
        steps = sum(count for _, count in self._counts)
        if not steps:
            raise UserError(
                f"None of {len(self._lengths)} pairs fits into data.max_len={self.data.max_len}: raise it, or give "
                "shorter sentences."
            )
        return steps

    @property
    def report(self) -> dict[str, Any]:
        positions = sum(2 * width * self._rows_of(width) * count for width, count in self._counts)
        kept = self._kept
        filled = int((self._source.lengths[kept] + self._target.lengths[kept] + 2).sum())
        return {
            "kept": len(kept),
            "dropped": len(self._lengths) - len(kept),
            "fill": filled / max(positions, 1),
            "shapes": [(self._rows_of(width), width) for width, count in self._counts if count],
            "steps_per_epoch": sum(count for _, count in self._counts),
        }

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        bits = _philox(self.seed, epoch)
        pairs = self._kept[_permutation(bits, len(self._kept))]
        buckets = self._bucket_of[pairs]
        plan: list[tuple[int, np.ndarray]] = []
        carried = pairs[:0]
        for bucket, (width, count) in zip(self._used, self._counts, strict=True):
            rows = self._rows_of(width)
            members = np.concatenate([carried, pairs[buckets == bucket]])
            plan.extend((width, batch) for batch in _cut(members[: count * rows], rows))
            carried = members[count * rows :]
        return [plan[i] for i in _permutation(bits, len(plan))]

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every pair exactly once, from short to long; widths beyond the last bucket are multiples of it.

        With `max_len`, pairs longer than that are left out, for a model that takes no more; `too_long` counts them.
        """
        limit = int(self._lengths.max(initial=0)) if max_len is None else max_len
        last = self._widths[-1]
        widths = np.where(
            self._bucket_of < len(self._widths),
            np.asarray(self._widths)[np.minimum(self._bucket_of, len(self._widths) - 1)],
            -(-self._lengths // last) * last,
        )
        for width in np.unique(widths[self._lengths <= limit]).tolist():
            for rows in _cut(np.flatnonzero((widths == width) & (self._lengths <= limit)), self._rows_of(width)):
                yield self._local(width, rows)

    def too_long(self, max_len: int) -> int:
        """How many pairs have a side longer than `max_len`, special tokens included."""
        return int((self._lengths > max_len).sum())

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        source, source_lengths = _gather(self._source, rows, width)
        target, target_lengths = _gather(self._target, rows, width)
        real = rows >= 0
        inputs, targets = source, target.copy()
        inputs[np.flatnonzero(real), source_lengths[real]] = Tokenizer.eos_id
        targets[np.flatnonzero(real), target_lengths[real]] = Tokenizer.eos_id
        target_inputs = np.zeros_like(target)
        target_inputs[:, 1:] = target[:, :-1]
        target_inputs[real, 0] = Tokenizer.bos_id
        position = np.arange(width, dtype=np.int32)
        input_segments = (position < (source_lengths + real)[:, None]).astype(np.int32)
        target_segments = (position < (target_lengths + real)[:, None]).astype(np.int32)
        return {
            "inputs": inputs,
            "input_positions": position * input_segments,
            "input_segments": input_segments,
            "target_inputs": target_inputs,
            "targets": targets,
            "target_positions": position * target_segments,
            "target_segments": target_segments,
            "example_ids": rows.astype(np.int32),
        }


def _buckets(data: DataConfig) -> list[int]:
    """The widths that max_len needs. UserError: none is that wide."""
    buckets = sorted(set(data.buckets))
    if not buckets or buckets[0] < 1 or buckets[-1] < data.max_len:
        raise UserError(
            f"data.buckets={data.buckets} does not cover data.max_len={data.max_len}: add a bucket of {data.max_len}."
        )
    return buckets[: int(np.searchsorted(buckets, data.max_len)) + 1]


def _gather(tokens: Tokens, rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, width] of the texts `rows`, padded, and their lengths [B]; a row of -1 is empty."""
    starts = tokens.offsets[np.maximum(rows, 0)]
    lengths = np.where(rows >= 0, tokens.lengths[np.maximum(rows, 0)], 0)
    column = np.arange(width)
    inside = column < lengths[:, None]
    matrix = np.full((len(rows), width), Tokenizer.pad_id, np.int32)
    matrix[inside] = tokens.flat[(starts[:, None] + column)[inside]]
    return matrix, lengths


# --- Language models


class PackedBatches(Batches):
    """Documents packed into rows of max_len: each BOS + tokens + EOS, the targets one ahead of the inputs.

    A document longer than max_len is cut into consecutive chunks. A row holds several chunks, numbered 1, 2, ... by
    its segments; positions restart in each. `tokens` are those of one field; empty documents are left out. The
    packing depends on the seed only, and the order of the rows on (seed, epoch).

    Keys: target_inputs, targets, target_positions, target_segments [B, L], L = max_len.
    """

    def __init__(
        self,
        tokens: Mapping[str, Tokens],
        *,
        seed: int,
        data: DataConfig,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        super().__init__(seed, data, process_index, process_count)
        (self._tokens,) = tokens.values()
        documents = np.flatnonzero(self._tokens.lengths)
        lengths = self._tokens.lengths[documents] + 1  # inputs with BOS, as many as targets with EOS
        chunks = -(-lengths // data.max_len)
        number = np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        document, start = np.repeat(documents, chunks), number * data.max_len
        length = np.minimum(data.max_len, np.repeat(lengths, chunks) - start)
        rows = pack(length, data.max_len, seed)
        by_row = np.argsort(rows, kind="stable")
        self._document, self._start, self._length = document[by_row], start[by_row], length[by_row]
        # The chunks of row r are first[r], ..., first[r + 1] - 1.
        self._first = np.concatenate([[0], np.cumsum(np.bincount(rows))]) if len(rows) else np.zeros(1, np.int64)
        self._kept = len(documents)

    @property
    def steps_per_epoch(self) -> int:
        rows = len(self._first) - 1
        if not rows:
            raise UserError(f"None of {len(self._tokens)} documents holds a token: give some text.")
        return -(-rows // self._rows_of(self.data.max_len))

    @property
    def report(self) -> dict[str, Any]:
        rows, steps = self._rows_of(self.data.max_len), self.steps_per_epoch
        return {
            "kept": self._kept,
            "dropped": 0,
            "fill": int(self._length.sum()) / (steps * rows * self.data.max_len),
            "shapes": [(rows, self.data.max_len)],
            "steps_per_epoch": steps,
        }

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        order = _permutation(_philox(self.seed, epoch), len(self._first) - 1)
        return [(self.data.max_len, rows) for rows in _cut(order, self._rows_of(self.data.max_len))]

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every chunk exactly once, in the order of the packing. Rows have the length max_len of the config."""
        del max_len  # nothing is longer than a row
        for rows in _cut(np.arange(len(self._first) - 1), self._rows_of(self.data.max_len)):
            yield self._local(self.data.max_len, rows)

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        first = self._first[np.maximum(rows, 0)]
        counts = np.where(rows >= 0, self._first[np.maximum(rows, 0) + 1] - first, 0)
        row, within = _spread(counts)  # of each chunk: its row in the batch, its number in that row
        chunk = first[row] + within
        length = self._length[chunk]
        before = np.cumsum(length) - length  # tokens of the batch before this chunk
        column = before - before[np.maximum(np.arange(len(chunk)) - within, 0)]
        owner, position = _spread(length)  # of each token: its chunk, its place in that chunk
        where = (row[owner], column[owner] + position)

        place = self._start[chunk][owner] + position  # in BOS + tokens + EOS
        document = self._document[chunk][owner]
        begin, end = self._tokens.offsets[document], self._tokens.lengths[document]
        flat = self._tokens.flat
        batch = {
            key: np.zeros((len(rows), width), np.int32)
            for key in ("target_inputs", "targets", "target_positions", "target_segments")
        }
        batch["target_inputs"][where] = np.where(place == 0, Tokenizer.bos_id, flat[begin + np.maximum(place - 1, 0)])
        batch["targets"][where] = np.where(place == end, Tokenizer.eos_id, flat[begin + np.minimum(place, end - 1)])
        batch["target_positions"][where] = position
        batch["target_segments"][where] = within[owner] + 1
        return batch


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [2, 3]: the owners [0, 0, 1, 1, 1] and the places [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def pack(lengths: np.ndarray, width: int, seed: int) -> np.ndarray:
    """A row for each length (each at most `width`) such that no row holds more than `width`: best fit, longest first.

    Deterministic; the seed decides between equal lengths. About a microsecond a length.
    """
    order = _permutation(_philox(seed, PACKING), len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    rows = np.zeros(len(lengths), np.int64)
    free: dict[int, list[int]] = {}  # room left -> rows with as much
    rooms = 0  # bit r is set when free[r] has a row: the best fit is one bit operation away
    count = 0
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = free[room].pop()
            if not free[room]:
                rooms ^= 1 << room
        else:
            room, row = width, count
            count += 1
        rows[item] = row
        if room > length:
            free.setdefault(room - length, []).append(row)
            rooms |= 1 << (room - length)
    return rows
