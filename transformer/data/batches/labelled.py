"""Batches of texts with classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch
from transformer.data.batches.bucketed import BucketedBatches, Widths
from transformer.data.batches.tokens import Tokens, gather


class LabelledBatches(BucketedBatches):
    """Texts of one field with their classes: BOS + tokens + EOS, in buckets of similar length.

    A text longer than max_len is cut (its EOS stays) unless `data.too_long` says otherwise. Keys: inputs [B, S], S =
    the bucket; input_lengths [B]; labels [B]; example_ids [B]. Padding rows have label 0 and example_id -1.
    """

    noun = "texts with classes"
    rules = ("cut", "drop", "refuse")

    def __init__(self, tokens: Mapping[str, Tokens], labels: np.ndarray, *, data: DataConfig, **others: Any) -> None:
        (self._tokens,) = tokens.values()
        if labels.shape != (len(self._tokens),):
            raise ValueError(f"{len(self._tokens)} texts with labels of shape {labels.shape}")
        self._labels = labels.astype(np.int32)
        super().__init__(self._tokens.lengths[:, None] + 2, data, **others)

    def _make(self, width: Widths, rows: np.ndarray) -> Batch:
        room = min(*width, self.data.max_len) - 2
        text, lengths = gather(self._tokens, rows, room, room, self.ends.pad)
        real = np.flatnonzero(rows >= 0)
        inputs = np.full((len(rows), *width), self.ends.pad, np.int32)
        inputs[:, 1 : room + 1] = text
        inputs[real, 0] = self.ends.bos
        inputs[real, lengths[real] + 1] = self.ends.eos
        return {
            "inputs": inputs,
            "input_lengths": np.where(rows >= 0, lengths + 2, 0).astype(np.int32),
            "labels": np.where(rows >= 0, self._labels[np.maximum(rows, 0)], 0).astype(np.int32),
            "example_ids": rows.astype(np.int32),
        }
