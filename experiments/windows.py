"""How narrow may a window be, and is one layer in two enough?

Hypothesis: quality falls only where N times the window no longer reaches across the sentence; windows on one layer in
two lose nothing, since the other layer sees all.

Source: Beltagy et al. 2020, "Longformer", section 3.1 (arXiv 2004.05150); alternating layers as in Gemma 2 (arXiv
2408.00118).
"""

from typing import Any

from experiments.lab.attention_times import milliseconds
from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "full"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def widths(base: Config) -> tuple[int, int, int]:
    """A tenth of the longest sentence, and half and twice of it."""
    middle = max(2, base.data.max_len // 10)
    return middle // 2, middle, 2 * middle


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Each width on all layers, and the narrowest on every second one."""
    chosen = widths(base)
    narrowest = chosen[0]
    found = {f"window-{w}": {"model.attention": [f"window:{w}"]} for w in chosen}
    alternating = {f"every-second-{narrowest}": {"model.attention": [f"window:{narrowest}", "full"]}}
    return {REFERENCE: {"model.attention": ["full"]}} | found | alternating


def cost(base: Config) -> list[dict[str, Any]]:
    """The times of each width as a band, beside full attention."""
    return milliseconds({"full, dense": (None, "dense")} | {f"window {w}": (w, "banded") for w in widths(base)})
