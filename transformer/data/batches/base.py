"""The base class of all batches. A batch is a pure function of (seed, step).

The plan of an epoch follows from token lengths and (seed, epoch), never from what was read before. So a checkpoint
needs only the step, a resumed run sees the same batches, and each of P processes takes its shards of the same global
batch. All arrays of text batches are int32. Right-padded rows have lengths (`*_lengths`); packed rows have a position
and a segment for each token (`*_positions`, `*_segments`; segment 0 is padding).
"""

import abc
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.ahead import Ahead
from transformer.data.batches.too_long import TooLong
from transformer.data.tokenizers import TRAINED, Ends
from transformer.errors import UserError

Batch = dict[str, np.ndarray]

# Used instead of the epoch in the random key of packing and of the corruption in evaluation.
PACKING = 2**64 - 1
EVALUATION = 2**64 - 2
BLOCKS = 2**64 - 3
MEMBERS = 2**64 - 4


class Batches(abc.ABC):
    """Batches of one split. Subclasses plan the steps of an epoch (`_epoch`) and build a batch from rows (`_make`). A
    row is a number, -1 for padding; a plan is a list of (width, rows), one entry per step; where examples have sides, a
    width is one number for each. `ends`: the ids that are added to texts."""

    too_long: TooLong | None = None  # what is done with examples beyond data.max_len; None: all have one size
    threads = 1  # that make batches ahead
    cut_to: int | None = None  # tokens of a text that are left where it is cut; None: none is cut

    def __init__(self, *, data: DataConfig, seed: int, ends: Ends = TRAINED) -> None:
        _check(data)
        self.seed, self.ends = seed, ends
        self.data = data
        self._shards, self._of = [0], 1
        # Two epochs, as a prefetching thread may be one ahead.
        self._plan = functools.lru_cache(maxsize=2)(self._epoch)

    def part(self, shards: Sequence[int], of: int) -> Self:
        """The same batches, of whose rows this process makes only these of `of` equal shards, in order. Processes may
        make the same shards."""
        if not shards or list(shards) != sorted(set(shards)) or not 0 <= shards[0] <= shards[-1] < of:
            raise ValueError(f"shards {shards} of {of}")
        part = copy.copy(self)
        part._shards, part._of = list(shards), of
        return part

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, equal for all epochs. UserError: there is no example to train on."""

    @property
    @abc.abstractmethod
    def report(self) -> dict[str, Any]:
        """Facts of the training batches: examples `kept` and `dropped` for length, `too_long` in numbers, `fill` (the
        share of positions that are not padding; `fills` of each side), `shapes` (rows, width of each side) over all
        processes, and `steps_per_epoch`."""
        return {} if self.too_long is None else {"too_long": self.too_long._asdict()}

    @property
    def evaluation_shapes(self) -> list[tuple[int, ...]]:
        """(rows, width of each side), over all processes, of the batches of `evaluation(data.max_len)`."""
        return self.report["shapes"]

    @abc.abstractmethod
    def _epoch(self, epoch: int) -> list[tuple[Any, np.ndarray]]: ...

    @abc.abstractmethod
    def _make(self, width: Any, rows: np.ndarray) -> Batch: ...

    @property
    @abc.abstractmethod
    def evaluated(self) -> np.ndarray:
        """The indices of the split's examples that `evaluation` holds, in order."""

    @abc.abstractmethod
    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every example that is `evaluated` exactly once, in a few fixed shapes; the last batch of a shape may have
        padding rows."""

    def longer_than(self, max_len: int) -> int:
        """The number of examples in `evaluation` longer than `max_len`, special tokens included."""
        return 0

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of a step (0, 1, ...)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        width, rows = self._plan(epoch)[index]
        return self._made(width, self._share(rows), epoch)

    def _made(self, width: Any, rows: np.ndarray, epoch: int) -> Batch:
        """The batch of these rows in training; `_make` is that of evaluation."""
        del epoch  # only what is hidden or changed depends on it
        return self._make(width, rows)

    def iterate(self, start: int, stop: int, place: Callable[[Batch], Any] = lambda batch: batch) -> "Ahead[Any]":
        """The batches of steps start, ..., stop - 1, made ahead by `threads`, which end with the iterator or at
        `close()`. The threads also call `place`, which copies a batch to the devices: 0.15 ms, where a step may take 5
        ms. To resume, the step is enough: the iterator has no state of its own."""
        return Ahead(lambda step: place(self.batch(step)), start, stop, self.threads)

    def _local(self, width: Any, rows: np.ndarray) -> Batch:
        return self._make(width, self._share(rows))

    def _share(self, rows: np.ndarray) -> np.ndarray:
        """The rows of this process. UserError: the rows do not divide by the number of shards."""
        if len(rows) % self._of:
            raise UserError(
                f"A batch of {len(rows)} rows cannot be shared by {self._of} shards: make data.row_multiple a multiple "
                f"of {self._of}."
            )
        return rows.reshape(self._of, -1)[self._shards].reshape(-1)

    def _rows_of(self, width: int) -> int:
        """Rows of a batch of this width: about batch_tokens positions, and a multiple of row_multiple."""
        multiple = self.data.row_multiple
        return max(multiple, self.data.batch_tokens // width // multiple * multiple)


def _check(data: DataConfig) -> None:
    if data.max_len < 2 or data.row_multiple < 1 or data.batch_tokens < 1:
        raise UserError(
            f"data.max_len={data.max_len}, data.batch_tokens={data.batch_tokens} and data.row_multiple="
            f"{data.row_multiple} must be positive, max_len at least 2."
        )


def philox(seed: int, epoch: int) -> np.random.Philox:
    """The random bits of an epoch. Only raw bits are drawn: unlike NumPy's distributions, they are the same in every
    version."""
    return np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))


def permutation(bits: np.random.Philox, size: int) -> np.ndarray:
    """A random permutation of 0 to size - 1."""
    return np.argsort(bits.random_raw(size), kind="stable") if size else np.zeros(0, np.int64)


def cut(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Splits rows into pieces of `count`; the last one is padded with -1."""
    padded = np.full(-(-len(rows) // count) * count, -1, np.int64)
    padded[: len(rows)] = rows
    return list(padded.reshape(-1, count))


def widths_needed(data: DataConfig) -> list[int]:
    """The bucket widths up to the one that holds max_len. UserError: none is that wide."""
    buckets = sorted(set(data.buckets))
    if not buckets or buckets[0] < 1 or buckets[-1] < data.max_len:
        raise UserError(
            f"data.buckets={data.buckets} does not cover data.max_len={data.max_len}: add a bucket of {data.max_len}."
        )
    return buckets[: int(np.searchsorted(buckets, data.max_len)) + 1]
