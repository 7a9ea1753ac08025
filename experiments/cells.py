"""LSTM or GRU, and what does attention give them?

Hypothesis: with additive attention both cells learn the task, a GRU with a quarter fewer weights; without it, all of a
sentence has to pass through one vector, and long sentences suffer.

Source: Bahdanau et al. 2015 (arXiv 1409.0473); Chung et al. 2014, "Empirical evaluation of gated recurrent neural
networks" (arXiv 1412.3555).
"""

from typing import Any

from transformer.config import Config

BASE = "configs/recurrent.py"
REFERENCE = "lstm"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Both cells, with attention and without."""
    return {
        f"{cell}{'' if attention else '-alone'}": {"model.cell": cell, "model.recurrent_attention": attention}
        for attention in (True, False)
        for cell in ("lstm", "gru")
    }
