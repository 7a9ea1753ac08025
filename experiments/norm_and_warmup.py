"""Does pre-norm need a warm-up, and does post-norm?

Hypothesis: post-norm does, since its gradients near the output are large at the start; pre-norm trains without.

Source: Xiong et al. 2020, "On layer normalization in the Transformer architecture" (arXiv 2002.04745).
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "post-warm"  # the paper's
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Norm and warm-up; "cold" begins at the peak."""
    return {
        f"{norm}-{start}": {"model.norm": norm} | ({} if start == "warm" else {"optimizer.warmup_steps": 1})
        for norm in ("post", "pre")
        for start in ("warm", "cold")
    }
