"""The base class of batches whose rows are all max_len tokens wide: packed, masked and contiguous ones."""

import abc
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer.data.batches.base import Batch, Batches, cut
from transformer.data.batches.facts import Facts
from transformer.data.batches.too_long import TooLong


class TokenRows(Batches):
    """Rows of `data.max_len` tokens, each once an epoch; only the last batch of an epoch has padding rows."""

    too_long: TooLong

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._ordered = functools.lru_cache(maxsize=2)(self._order)

    @property
    @abc.abstractmethod
    def facts(self) -> Facts: ...

    @abc.abstractmethod
    def _order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, as `_make` takes them."""

    def _facts(self, rows: int, kept: int, dropped: int, filled: int) -> Facts:
        together, width = self._rows_of(self.data.max_len), self.data.max_len
        steps = -(-rows // together)
        shapes = ((together, width),)
        return Facts(steps, rows, kept, dropped, (filled,), (steps * together * width,), shapes, shapes, self.too_long)

    @property
    def report(self) -> dict[str, Any]:
        assert self.steps_per_epoch, "or else it raises"
        return self.facts.report(sides=False)

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        width = self.data.max_len
        return [(width, rows) for rows in cut(self._ordered(epoch), self._rows_of(width))]

    def rows(self, numbers: np.ndarray) -> Batch:
        """These rows (ascending) of the endless sequence in which the rows of an epoch, without padding rows, follow
        those of the one before."""
        epochs, places = np.divmod(numbers, self.facts.rows)
        made = [
            self._made(self.data.max_len, self._ordered(epoch)[places[epochs == epoch]], epoch)
            for epoch in np.unique(epochs).tolist()
        ]
        return stacked(made)


def stacked(batches: Sequence[Batch]) -> Batch:
    """The rows of all batches, one below the other."""
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
