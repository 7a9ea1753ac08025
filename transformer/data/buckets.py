"""Batches of examples of similar length, padded to the width of their bucket."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.pipeline import Batch, Batches, _buckets, _cut, _permutation, _philox


class BucketBatches(Batches):
    """One example a row, all of them no longer than `data.max_len`; `lengths` [n] are in positions.

    What does not fill a batch goes up into the next bucket, so that only one batch of an epoch has rows of padding.
    """

    def __init__(
        self, lengths: np.ndarray, seed: int, data: DataConfig, process_index: int, process_count: int
    ) -> None:
        super().__init__(seed, data, process_index, process_count)
        widths = _buckets(data)
        self._lengths = lengths
        self._bucket_of = np.searchsorted(widths, lengths)
        # (bucket, width, rows, batches) of the buckets in use; the counts do not depend on the epoch.
        self._counts: list[tuple[int, int, int, int]] = []
        sizes = np.bincount(self._bucket_of, minlength=len(widths))
        used, carried = np.flatnonzero(sizes).tolist(), 0
        for bucket in used:
            size, rows = carried + int(sizes[bucket]), self._rows_of(widths[bucket])
            count = -(-size // rows) if bucket == used[-1] else size // rows
            self._counts.append((bucket, widths[bucket], rows, count))
            carried = size % rows

    @property
    def steps_per_epoch(self) -> int:
        return sum(count for *_, count in self._counts)

    @property
    def report(self) -> dict[str, Any]:
        positions = sum(width * rows * count for _, width, rows, count in self._counts)
        return {
            "kept": len(self._lengths),
            "dropped": 0,
            "fill": int(self._lengths.sum()) / positions,
            "shapes": [(rows, width) for _, width, rows, count in self._counts if count],
            "steps_per_epoch": self.steps_per_epoch,
        }

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        bits = _philox(self.seed, epoch)
        order = _permutation(bits, len(self._lengths))
        buckets = self._bucket_of[order]
        plan: list[tuple[int, np.ndarray]] = []
        carried = order[:0]
        for bucket, width, rows, count in self._counts:
            members = np.concatenate([carried, order[buckets == bucket]])
            plan.extend((width, batch) for batch in _cut(members[: count * rows], rows))
            carried = members[count * rows :]
        return [plan[i] for i in _permutation(bits, len(plan))]

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every example exactly once, from short to long."""
        del max_len  # none is longer than the config's
        for bucket, width, rows, _ in self._counts:
            for batch in _cut(np.flatnonzero(self._bucket_of == bucket), rows):
                yield self._local(width, batch)
