"""How wide do queries and keys need to be?

Hypothesis: as in rows (B) of Table 3 of the paper, narrower keys hurt (0.4 to 0.7 BLEU there): telling keys apart is
not easy. Values keep their width, so only the scores have less to go by.

Source: Vaswani et al. 2017, Table 3 (B) (arXiv 1706.03762), where keys of 16 and 32 stand against 64.
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "keys-full"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """A half, a quarter and an eighth of the base's width of a head."""
    model = base.model
    width = model.head_dim or model.d_model // model.num_heads
    value = model.value_dim or width
    return {REFERENCE: {}} | {
        f"keys-{width // part}": {"model.head_dim": width // part, "model.value_dim": value}
        for part in (2, 4, 8)
        if width // part >= 1
    }
