"""Batches of windows of a series: past steps, and the steps to forecast."""

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch
from transformer.data.batches.rows import RowBatches
from transformer.data.sources.source import SPLIT_ORDER, Source
from transformer.errors import UserError


class SeriesBatches(RowBatches):
    """All windows of a split: `data.max_len` steps and the `data.horizon` after them; `batch_tokens` counts windows.

    The forecast steps always belong to the split; the past steps may come from the splits before it, as in the
    literature. So `validation` and `test` have T - horizon + 1 windows for any look-back, and `train`, with nothing
    before it, T - max_len - horizon + 1. Window 0 is the earliest.

    Keys: inputs [B, max_len, C] and targets [B, horizon, C] float32, the z-scores of the source; example_ids [B] int32,
    the window numbers; padding rows are zeros with example_id -1. UserErrors: too few steps for a single window, a
    value that is not finite.
    """

    noun = "windows of series"

    def __init__(self, source: Source, split: str, *, data: DataConfig, **others: int) -> None:
        field = source.array("values")
        own = source.split(split)[0][field]
        earlier = SPLIT_ORDER[: SPLIT_ORDER.index(split)] if split in SPLIT_ORDER else ()
        before = [source.split(name)[0][field] for name in earlier if name in source.splits]
        past = np.concatenate([own[:0], *before])
        self.values = np.concatenate([past[max(0, len(past) - data.max_len) :], own])
        wrong = np.argwhere(~np.isfinite(self.values))
        if len(wrong):
            row, column = wrong[0]
            raise UserError(
                f"{source.name} has {self.values[row, column]} in row {row} of column {column} of {split!r} and its "
                "look-back: fill it in, for example by interpolation."
            )
        windows = len(self.values) - data.max_len - data.horizon + 1
        if windows < 1:
            raise UserError(
                f"The split {split!r} of {source.name} has {len(self.values)} steps to look at, fewer than "
                f"data.max_len={data.max_len} and data.horizon={data.horizon} together: lower one of them."
            )
        super().__init__(windows, data.max_len + data.horizon, data, **others)

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        window = self.values[np.maximum(rows, 0)[:, None] + np.arange(width)]
        window[rows < 0] = 0
        past = self.data.max_len
        return {
            "inputs": np.ascontiguousarray(window[:, :past]),
            "targets": np.ascontiguousarray(window[:, past:]),
            "example_ids": rows.astype(np.int32),
        }
