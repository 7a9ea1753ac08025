"""Batches of examples of similar length: the base class for pairs, labelled texts, recordings and span corruption."""

import abc
from collections.abc import Iterator
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch, Batches, cut, permutation, philox, widths_needed
from transformer.errors import UserError


class BucketedBatches(Batches):
    """A batch holds examples of similar length, padded to the width of their bucket.

    `lengths` are those of the longest side of each example, special tokens included; `filled` counts the tokens of all
    its `sides`. Training leaves out examples longer than max_len; `evaluation` does not. Examples that do not fill a
    batch move to the next bucket, so that only one batch of an epoch has padding rows.
    """

    noun = "examples"
    sides = 1

    def __init__(self, lengths: np.ndarray, filled: np.ndarray, data: DataConfig, **others: int) -> None:
        super().__init__(data=data, **others)
        self._widths = widths_needed(data)
        self._lengths, self._filled = lengths, filled
        self._kept = np.flatnonzero(self._lengths <= data.max_len)
        self._bucket_of = np.searchsorted(self._widths, self._lengths)
        # (width, batches) of the buckets in use, the same in every epoch.
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
                f"None of {len(self._lengths)} {self.noun} fits into data.max_len={self.data.max_len}: raise it, or "
                "give shorter sentences."
            )
        return steps

    @property
    def report(self) -> dict[str, Any]:
        positions = sum(self.sides * width * self._rows_of(width) * count for width, count in self._counts)
        return {
            "kept": len(self._kept),
            "dropped": len(self._lengths) - len(self._kept),
            "fill": int(self._filled[self._kept].sum()) / max(positions, 1),
            "shapes": [(self._rows_of(width), width) for width, count in self._counts if count],
            "steps_per_epoch": sum(count for _, count in self._counts),
        }

    @property
    def evaluation_shapes(self) -> list[tuple[int, int]]:
        return [(self._rows_of(self._widths[bucket]), self._widths[bucket]) for bucket in self._used]

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        bits = philox(self.seed, epoch)
        examples = self._kept[permutation(bits, len(self._kept))]
        buckets = self._bucket_of[examples]
        plan: list[tuple[int, np.ndarray]] = []
        carried = examples[:0]
        for bucket, (width, count) in zip(self._used, self._counts, strict=True):
            rows = self._rows_of(width)
            members = np.concatenate([carried, examples[buckets == bucket]])
            plan.extend((width, batch) for batch in cut(members[: count * rows], rows))
            carried = members[count * rows :]
        return [plan[i] for i in permutation(bits, len(plan))]

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every example exactly once, from short to long; widths beyond the last bucket are multiples of it. With
        `max_len`, longer examples are left out, for a model that cannot take them; `too_long` counts them."""
        limit = int(self._lengths.max(initial=0)) if max_len is None else max_len
        last = self._widths[-1]
        widths = np.where(
            self._bucket_of < len(self._widths),
            np.asarray(self._widths)[np.minimum(self._bucket_of, len(self._widths) - 1)],
            -(-self._lengths // last) * last,
        )
        for width in np.unique(widths[self._lengths <= limit]).tolist():
            for rows in cut(np.flatnonzero((widths == width) & (self._lengths <= limit)), self._rows_of(width)):
                yield self._local(width, rows)

    def too_long(self, max_len: int) -> int:
        """The number of examples with a side longer than `max_len`, special tokens included."""
        return int((self._lengths > max_len).sum())

    @abc.abstractmethod
    def _make(self, width: int, rows: np.ndarray) -> Batch: ...
