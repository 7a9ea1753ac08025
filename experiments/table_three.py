"""Which parts of the Transformer matter? (Table 3 of the paper, in miniature)

Hypothesis: the signs of the paper's rows, whose differences from its base are, in BLEU: one head −0.9, twice the heads
0.0 (A); a third of the layers −2.1, a third more −0.3; half the width −1.3, twice +0.2 (C); no dropout −1.2, twice as
much −0.3; no label smoothing −0.5 with a better perplexity, twice as much −0.1 (D); learned positions −0.1 (E).

Source: Vaswani et al. 2017, Table 3 (arXiv 1706.03762), measured there on newstest2013, one run a row.
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "base"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter
SETTINGS = {"steps": 500}  # of the default: a quarter of an hour for all rows


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """The rows for heads, layers, width, dropout, label smoothing and positions, each with one change of the base; none
    for one head or one layer where the base has no more."""
    layers, width, heads = base.model.num_layers, base.model.d_model, base.model.num_heads
    paper = {"model.dropout": 0.1, "label_smoothing": 0.1, "model.positions": "sinusoidal"}
    changes: dict[str, dict[str, Any]] = {
        REFERENCE: {},
        **({"heads-1": {"model.num_heads": 1}} if heads > 1 else {}),
        "heads-double": {"model.num_heads": 2 * heads},
        **({"layers-third": {"model.num_layers": max(1, layers // 3)}} if layers > 1 else {}),
        "layers-more": {"model.num_layers": layers + max(1, layers // 3)},
        "width-half": {"model.d_model": width // 2},
        "width-double": {"model.d_model": 2 * width},
        "dropout-0": {"model.dropout": 0.0},
        "dropout-0.2": {"model.dropout": 0.2},
        "smoothing-0": {"label_smoothing": 0.0},
        "smoothing-0.2": {"label_smoothing": 0.2},
        "learned": {"model.positions": "learned"},
    }
    return {name: paper | change for name, change in changes.items()}
