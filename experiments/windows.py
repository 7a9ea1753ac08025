"""How narrow may a window be, and is one layer in two enough?

Hypothesis: quality falls only where N times the window no longer reaches across the sentence; windows on one layer in
two lose nothing, since the other layer sees all.

Source: Beltagy et al. 2020, "Longformer", section 3.1 (arXiv 2004.05150); alternating layers as in Gemma 2 (arXiv
2408.00118).
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "full"


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Windows of a tenth of the longest sentence, half and twice of it, and the narrowest on every second layer."""
    middle = max(2, base.data.max_len // 10)
    widths = (middle // 2, middle, 2 * middle)
    found = {f"window-{w}": {"model.attention": [f"window:{w}"]} for w in widths}
    alternating = {f"every-second-{widths[0]}": {"model.attention": [f"window:{widths[0]}", "full"]}}
    return {REFERENCE: {"model.attention": ["full"]}} | found | alternating
