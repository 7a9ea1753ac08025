"""How many heads should attention have, at the same cost?

Hypothesis: as in rows (A) of Table 3 of the paper, one head is worse than several (0.9 BLEU there), and too many are
worse again, as heads become too narrow to tell keys apart.

Source: Vaswani et al. 2017, Table 3 (A) (arXiv 1706.03762). Parameters and multiplications are the same for all: heads
share out the width.
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "heads-base"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """One head, and twice and four times as many as the base has, as far as they divide the width into 4 or more."""
    most = base.model.d_model // 4
    counts = [n for n in (1, 2 * base.model.num_heads, 4 * base.model.num_heads) if n <= most]
    counts = [n for n in counts if n != base.model.num_heads and base.model.d_model % n == 0]
    return {REFERENCE: {}} | {f"heads-{n}": {"model.num_heads": n} for n in sorted(set(counts))}
