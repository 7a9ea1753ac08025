"""Why are scores divided by the square root of the width of a head?

Hypothesis: without it, scores of wide heads have a deviation of sqrt(K), the softmax is nearly one-hot from the start,
its gradient small, and training slower or stuck.

Source: Vaswani et al. 2017, section 3.2.1 and its footnote 4 (arXiv 1706.03762).
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "scaled"  # the paper's


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """With the division and without."""
    return {REFERENCE: {"model.scale_attention": True}, "unscaled": {"model.scale_attention": False}}
