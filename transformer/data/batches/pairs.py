"""Batches of pairs of texts, for translation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch
from transformer.data.batches.bucketed import BucketedBatches, Widths
from transformer.data.batches.targets import decoder_arrays
from transformer.data.batches.tokens import Tokens, gather
from transformer.data.tokenizers import TRAINED, Ends


class PairBatches(BucketedBatches):
    """Pairs of similar length in a batch, each side padded to a width of its own (`BucketedBatches`).

    `tokens` are those of the source and the target field, in this order. A side's length includes EOS (or BOS). A side
    that `data.too_long` cuts keeps its EOS. Keys: inputs [B, S], input_lengths [B]; target_inputs (BOS first), targets
    (EOS last) [B, L], target_lengths [B]; example_ids [B], -1 on padding rows.
    """

    noun = "pairs"

    def __init__(self, tokens: Mapping[str, Tokens], *, data: DataConfig, **others: Any) -> None:
        self._source, self._target = tokens.values()
        super().__init__(np.stack([self._source.lengths, self._target.lengths], axis=1) + 1, data, **others)
        if self._rule == "cut":
            self.cut_to = data.max_len - 1

    def _make(self, width: Widths, rows: np.ndarray) -> Batch:
        source, source_lengths = gather(self._source, rows, width[0], self.cut_to, self.ends.pad)
        target, target_lengths = gather(self._target, rows, width[1], self.cut_to, self.ends.pad)
        return pair_batch(source, source_lengths, target, target_lengths, rows, self.ends)


def pair_batch(
    source: np.ndarray,
    source_lengths: np.ndarray,
    target: np.ndarray,
    target_lengths: np.ndarray,
    rows: np.ndarray,
    ends: Ends = TRAINED,
) -> Batch:
    """The batch of padded texts [B, S] and [B, L], each shorter than its width. EOS is appended to each, and BOS is put
    before the decoder's inputs. `source` is modified in place."""
    real = rows >= 0
    source[np.flatnonzero(real), source_lengths[real]] = ends.eos
    return {
        "inputs": source,
        "input_lengths": (source_lengths + real).astype(np.int32),
        **decoder_arrays(target, target_lengths, rows, ends),
        "example_ids": rows.astype(np.int32),
    }
