"""How wide should the feed-forward be, and is it needed?

Hypothesis: the feed-forward holds most of a layer's weights (two thirds at four times the width, in an encoder), and
quality follows them: without it the model is clearly worse, and eight times the width is a little better than four.

Source: Vaswani et al. 2017, equation 2 and Table 3 (C), where 1,024 and 4,096 stand against 2,048 (arXiv 1706.03762);
that feed-forwards are memories, Geva et al. 2021 (arXiv 2012.14913).
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "four"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """None, and two, four and eight times d_model."""
    width = base.model.d_model
    return {
        REFERENCE: {"model.d_ff": 4 * width},
        "none": {"model.d_ff": 0},
        "two": {"model.d_ff": 2 * width},
        "eight": {"model.d_ff": 8 * width},
    }
