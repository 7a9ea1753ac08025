"""Do dropout and label smoothing help?

Hypothesis: as in rows (D) of Table 3 of the paper, no dropout is worse where data are seen many times, and label
smoothing costs perplexity and helps BLEU a little. Two passes over generated data leave little to regularise, so on
the default both may only slow training down.

Source: Vaswani et al. 2017, section 5.4 and Table 3 (D) (arXiv 1706.03762).
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "neither"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Dropout of 0.1 and label smoothing of 0.1, each alone and both."""
    return {
        REFERENCE: {"model.dropout": 0.0, "label_smoothing": 0.0},
        "dropout": {"model.dropout": 0.1, "label_smoothing": 0.0},
        "smoothing": {"model.dropout": 0.0, "label_smoothing": 0.1},
        "both": {"model.dropout": 0.1, "label_smoothing": 0.1},
    }
