"""FLOPs that a model needs for a training step, by formula."""

import math
from collections.abc import Mapping
from typing import Any

from transformer.config import Config, head_width, parse_pattern
from transformer.errors import UserError


def step_flops(
    config: Config, shapes: dict[str, tuple[int, ...]], rows: int, length: int, source: int | None = None
) -> float:
    """FLOPs of the forward and backward pass over [rows, length] tokens; an encoder reads `source` tokens a row, as
    many by default. Forward: 2 per weight and position, and for attention 2 S (K + M) per query and head, with S the
    keys that a query may see in either direction. Backward: twice that. A table counts as the output product only, not
    for the lookup; heads of classes, which read one vector per row, are not counted. UserError: the model is of another
    kind."""
    model, source = config.model, length if source is None else source
    if model.inputs != "tokens" or model.family not in ("encoder_decoder", "decoder_only", "encoder_only"):
        raise UserError(
            f"FLOPs are counted for Transformers of texts, not model.family={model.family!r} of {model.inputs}"
        )
    both = model.family == "encoder_decoder"

    def tokens(path: str) -> int:
        """How many a matrix is applied to: keys and values of cross-attention are those of the encoder's outputs."""
        reads_source = path.startswith("encoder/") or "cross_attention/key/" in path or "cross_attention/value/" in path
        return source if both and reads_source else length

    matrices = sum(
        tokens(path) * math.prod(shape)
        for path, shape in shapes.items()
        if path.endswith("kernel") and not path.startswith(("head/", "pooler/"))
    )
    output = 0 if model.num_classes else length * math.prod(output_shape(shapes))
    width = head_width(model)
    seen = 0  # keys, over all queries
    for layer in range(model.num_layers):
        window = parse_pattern(model.attention[layer % len(model.attention)])
        for size in (length, source) if both else (length,):
            seen += size * min(size, size if window is None else 2 * window + 1)
    if both:
        seen += model.num_layers * length * source  # cross-attention
    attention = 2 * model.num_heads * (width + (model.value_dim or width)) * seen
    return 3.0 * rows * (2 * (matrices + output) + attention)


def output_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """(V, D) of the output table."""
    return shapes.get("embedder/output_table", shapes["embedder/table"])


def batch_flops(config: Config, shapes: dict[str, tuple[int, ...]], batch: Mapping[str, Any]) -> float | None:
    """`step_flops` of a batch; None for a model that it does not support."""
    rows, length = (batch["targets"] if "targets" in batch else batch["inputs"]).shape[:2]
    source = batch["inputs"].shape[1] if "inputs" in batch else None
    try:
        return step_flops(config, shapes, rows, length, source)
    except UserError:
        return None
