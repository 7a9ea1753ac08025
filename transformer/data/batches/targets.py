"""Inputs and targets of a decoder."""

import numpy as np

from transformer.data.batches.base import Batch
from transformer.data.batches.tokens import Tokens, gather
from transformer.data.tokenizers import Ends


def target_arrays(tokens: Tokens, rows: np.ndarray, width: int, ends: Ends) -> Batch:
    """`decoder_arrays` of the texts `rows` (-1: none); every text is shorter than the width."""
    return decoder_arrays(*gather(tokens, rows, width, pad=ends.pad), rows, ends)


def decoder_arrays(text: np.ndarray, lengths: np.ndarray, rows: np.ndarray, ends: Ends) -> Batch:
    """The decoder's inputs (BOS first) and targets (EOS last) [B, width] of padded texts [B, width], and their lengths
    [B]. Every text is shorter than the width; where `rows` is -1 there is none."""
    real = rows >= 0
    targets = text.copy()
    targets[np.flatnonzero(real), lengths[real]] = ends.eos
    inputs = np.full_like(text, ends.pad)
    inputs[:, 1:] = text[:, :-1]
    inputs[real, 0] = ends.bos
    return {"target_inputs": inputs, "targets": targets, "target_lengths": (lengths + real).astype(np.int32)}
