"""Should the output share its table with the embedding?

Hypothesis: one table for both is as good or better, with V times D fewer parameters; on little data a table of its own
has more to learn.

Source: Press & Wolf 2017, "Using the output embedding to improve language models" (arXiv 1608.05859); Vaswani et al.
2017, section 3.4.
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "tied"  # the paper's
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """One table or two."""
    return {REFERENCE: {"model.tied": True}, "untied": {"model.tied": False}}
