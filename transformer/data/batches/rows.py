"""Batches of examples that all have the same shape."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch, Batches, cut, permutation, philox
from transformer.data.batches.too_long import refuse_rule


class RowBatches(Batches):
    """`count` examples (`noun`) of one shape, one per row: each once an epoch, in an order given by (seed, epoch).

    `data.batch_tokens` counts rows: the rows of a batch, rounded down to a multiple of `data.row_multiple`. Only the
    last batch of the plan has padding rows. `width` is the size of a row in the report.
    """

    noun = "examples"

    def __init__(self, count: int, width: int, data: DataConfig, **others: Any) -> None:
        refuse_rule(data, self.noun)
        super().__init__(data=data, **others)
        self._count, self._width = count, width
        self._rows = self._rows_of(1)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._count // self._rows)

    @property
    def report(self) -> dict[str, Any]:
        steps = self.steps_per_epoch
        return {
            "kept": self._count,
            "dropped": 0,
            "fill": self._count / (steps * self._rows),
            "shapes": [(self._rows, self._width)],
            "steps_per_epoch": steps,
        }

    @property
    def evaluated(self) -> np.ndarray:
        return np.arange(self._count)

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        order = permutation(philox(self.seed, epoch), self._count)
        return [(self._width, rows) for rows in cut(order, self._rows)]

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every example exactly once, in order."""
        del max_len  # all rows have one size
        for rows in cut(np.arange(self._count), self._rows):
            yield self._local(self._width, rows)
