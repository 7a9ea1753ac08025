"""Do position encodings differ in quality, and does a sliding window cost quality?

Hypothesis: as in row (E) of Table 3 of the paper, sinusoidal and learned positions reach the same quality on sentences
of training length. On longer sentences they part: a learned table ends where training ended, the sinusoid goes on
without having been trained there. Without positions the decoder can still count through its causal mask, the encoder
cannot, so translation suffers. A window keeps the quality as long as N layers reach across the sentence (N times the
window), and pays only from some length on.

Source: Vaswani et al. 2017, "Attention is all you need", sections 3.5 and 5.4 and Table 3 (arXiv 1706.03762); windows:
Beltagy et al. 2020, "Longformer" (arXiv 2004.05150); no positions: Kazemnejad et al. 2023 (arXiv 2305.19466).
"""

import math
from typing import Any

from experiments.lab.attention_times import milliseconds
from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "sinusoidal-full"  # the paper's
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter

POSITIONS = ("sinusoidal", "learned", "none")


def window(base: Config) -> int:
    """Visible neighbours a side: the largest power of two within a fifth of the longest sequence.

    8 of 40 tokens (quantities), 16 of 96 (Multi30k), 64 of 512 (docstrings).
    """
    return 2 ** int(math.log2(max(1, base.data.max_len // 5)))


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Variant -> the config keys in which it differs from the base."""
    attention = {"full": "full", "window": f"window:{window(base)}"}
    return {
        f"{positions}-{name}": {"model.positions": positions, "model.attention": [pattern]}
        for positions in POSITIONS
        for name, pattern in attention.items()
    }


def cost(base: Config) -> list[dict[str, Any]]:
    """The times of dense full attention, of the window as a mask on the dense form, and of the window as a band that
    skips the work outside it."""
    width = window(base)
    return milliseconds({
        "full, dense": (None, "dense"),
        f"window {width}, masked": (width, "dense"),
        f"window {width}, banded": (width, "banded"),
    })  # fmt: skip
