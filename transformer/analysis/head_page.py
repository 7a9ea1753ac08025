"""The head viewer: attention in, one self-contained HTML page out (its layout and code are in head_page.html)."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer.analysis.attention import Attention
from transformer.analysis.heads import head_statistics
from transformer.errors import UserError

# Weights of two bytes each, before base64: about the most that a browser opens at once.
MAX_BYTES = 48 * 2**20

# Stack and kind -> title on the page.
NAMES = {
    ("encoder", "self"): "encoder: input to input",
    ("decoder", "self"): "decoder: output to output",
    ("decoder", "cross"): "cross: output to input",
}


def head_page(watched: Mapping[str, Mapping[str, Attention]], tokens: Mapping[str, Sequence[str]], about: str) -> str:
    """The page for the first row of each attention.

    Args:
        watched: the attention from `watch`, of rows without padding.
        tokens: stack -> the text of each of its tokens.
        about: a sentence on model and text, shown at the top.

    Raises UserError for more weights than MAX_BYTES, or weights with NaN.
    """
    if any(np.isnan(found.weights).any() for kinds in watched.values() for found in kinds.values()):
        raise UserError(
            "the model's attention is not a number (NaN), as after a training run that diverged: use an earlier "
            "checkpoint"
        )
    size = sum(2 * found.weights[:, 0].size for kinds in watched.values() for found in kinds.values())
    if size > MAX_BYTES:
        longest = max(map(len, tokens.values()))
        raise UserError(
            f"the attention of {longest} tokens takes {size / 2**20:.0f} MiB, and a page holds "
            f"{MAX_BYTES / 2**20:.0f}: give a shorter text"
        )
    views = [
        _view(NAMES[stack, kind], kind, found, tokens[stack], tokens["encoder" if kind == "cross" else stack])
        for stack, kinds in watched.items()
        for kind, found in kinds.items()
    ]
    data = json.dumps({"about": about, "views": views}, ensure_ascii=False)
    # Only "<" could end the script element, so it is escaped.
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return template.replace("@DATA@", data.replace("<", "\\u003c"))


def _view(name: str, kind: str, found: Attention, queries: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    weights = np.asarray(found.weights)[:, 0]
    if weights.shape[2:] != (len(queries), len(keys)):
        raise ValueError(f"{name}: {len(queries)} and {len(keys)} tokens for weights {weights.shape}")
    statistics = head_statistics(found)
    return {
        "name": name,
        "self": kind == "self",
        "queries": list(queries),
        "keys": list(keys),
        "weights": base64.b64encode(np.round(weights * 65535).astype("<u2").tobytes()).decode(),
        **{key: np.round(value, 4).tolist() for key, value in statistics._asdict().items()},
    }
