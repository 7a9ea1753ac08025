"""Batches of pairs of texts, for translation."""

from collections.abc import Mapping

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch
from transformer.data.batches.bucketed import BucketedBatches
from transformer.data.batches.targets import decoder_arrays
from transformer.data.batches.tokens import Tokens, gather
from transformer.data.tokenizers import Tokenizer


class PairBatches(BucketedBatches):
    """Pairs of similar length in a batch, padded to the width of their bucket.

    `tokens` are those of the source and the target field, in this order. A pair's length is that of its longer side,
    EOS (or BOS) included; training leaves out pairs longer than max_len, `evaluation` none. Keys: inputs [B, S],
    input_lengths [B]; target_inputs (BOS first), targets (EOS last) [B, L], target_lengths [B], S = L = the bucket;
    example_ids [B], -1 on padding rows.
    """

    noun = "pairs"
    sides = 2

    def __init__(self, tokens: Mapping[str, Tokens], *, data: DataConfig, **others: int) -> None:
        self._source, self._target = tokens.values()
        source, target = self._source.lengths + 1, self._target.lengths + 1
        super().__init__(np.maximum(source, target), source + target, data, **others)

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        source, source_lengths = gather(self._source, rows, width)
        target, target_lengths = gather(self._target, rows, width)
        return pair_batch(source, source_lengths, target, target_lengths, rows)


def pair_batch(
    source: np.ndarray, source_lengths: np.ndarray, target: np.ndarray, target_lengths: np.ndarray, rows: np.ndarray
) -> Batch:
    """The batch of padded texts [B, width], each shorter than the width. EOS is appended to each, and BOS is put before
    the decoder's inputs. `source` is modified in place."""
    real = rows >= 0
    source[np.flatnonzero(real), source_lengths[real]] = Tokenizer.eos_id
    return {
        "inputs": source,
        "input_lengths": (source_lengths + real).astype(np.int32),
        **decoder_arrays(target, target_lengths, rows),
        "example_ids": rows.astype(np.int32),
    }
