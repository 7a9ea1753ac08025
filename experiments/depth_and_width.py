"""Deeper or wider?

Hypothesis: as in rows (C) of Table 3 of the paper, bigger is better in both directions. At equal parameters depth and
width are close, and more layers take longer, one after another.

Source: Vaswani et al. 2017, Table 3 (C) (arXiv 1706.03762). `deep` and `wide` have about the parameters of the layers
of the base; `half` and `double` have half and twice its layers. --budget=seconds asks it at equal time, where deep
models have fewer steps.
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "base"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Layers of the base's width, and of 0.7 and 1.4 times it with twice and half the layers."""
    model = base.model
    heads = model.num_heads

    def width(factor: float) -> int:
        return round(model.d_model * factor / (2 * heads)) * 2 * heads

    def size(layers: int, factor: float) -> dict[str, Any]:
        wide = width(factor)
        return {"model.num_layers": layers, "model.d_model": wide, "model.d_ff": wide * model.d_ff // model.d_model}

    layers = model.num_layers
    return {
        REFERENCE: {},
        **({"half": {"model.num_layers": layers // 2}} if layers > 1 else {}),
        "double": {"model.num_layers": 2 * layers},
        "deep": size(2 * layers, 2**-0.5),
        "wide": size(max(1, layers // 2), 2**0.5),
    }
