"""Positions and segments of padded rows, and the texts that a decoder is to write."""

import numpy as np

from transformer.data.pipeline import Batch, Tokens, gather
from transformer.data.tokenizers import Tokenizer


def places(side: str, lengths: np.ndarray, width: int) -> Batch:
    """Positions 0, 1, ... and segment 1 of rows [B] of such lengths, zeros after them: two arrays [B, width]."""
    position = np.arange(width, dtype=np.int32)
    segments = (position < lengths[:, None]).astype(np.int32)
    return {f"{side}_positions": position * segments, f"{side}_segments": segments}


def target_arrays(tokens: Tokens, rows: np.ndarray, width: int) -> Batch:
    """What a decoder reads (BOS first) and should say (EOS last) of the texts `rows`, each [B, width]; -1 is none.

    Every text is shorter than the width.
    """
    text, lengths = gather(tokens, rows, width)
    real = rows >= 0
    targets = text.copy()
    targets[np.flatnonzero(real), lengths[real]] = Tokenizer.eos_id
    inputs = np.zeros_like(text)
    inputs[:, 1:] = text[:, :-1]
    inputs[real, 0] = Tokenizer.bos_id
    return {"target_inputs": inputs, "targets": targets} | places("target", lengths + real, width)
