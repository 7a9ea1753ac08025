"""A training step's FLOPs, memory, collectives and time, computed for accelerators that need not be present. Every
figure is a formula over the shapes of the parameters, written beside it; peaks and bandwidths are from the vendors'
data sheets, and EFFICIENCY is the one assumption."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformer.config import Config, head_width, parse_pattern
from transformer.errors import UserError
from transformer.platforms import tuned
from transformer.training.sharding import Layout, check_rows


class Accelerator(NamedTuple):
    flops: float  # per second, dense bfloat16 products
    single: float  # per second, float32 at JAX's default precision: TF32 on GPUs, rounded to bfloat16 on TPUs
    memory: float  # bytes
    near: float  # bytes per second that a device sends within its machine (or its torus)
    far: float  # bytes per second to other machines
    machine: int  # devices per machine


ACCELERATORS = {
    "a100": Accelerator(312e12, 156e12, 80e9, 300e9, 25e9, 8),
    "h100": Accelerator(989e12, 494e12, 80e9, 450e9, 50e9, 8),
    "h200": Accelerator(989e12, 494e12, 141e9, 450e9, 50e9, 8),
    "tpu-v4": Accelerator(275e12, 275e12, 32e9, 150e9, 150e9, 4096),
    "tpu-v5e": Accelerator(197e12, 197e12, 16e9, 100e9, 100e9, 256),
    "tpu-v5p": Accelerator(459e12, 459e12, 95e9, 300e9, 300e9, 8960),
}
# JAX's names. Variants with lower clocks (H100 PCIe and NVL, GH200) are not listed.
DEVICE_KINDS = {
    r"NVIDIA A100.*": "a100",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA H200": "h200",
    r"TPU v4": "tpu-v4",
    r"TPU v5 ?(lite|e)": "tpu-v5e",
    r"TPU v5p?": "tpu-v5p",
}
# The share of the peak that a step reaches, including the kernels and norms between matrix products.
EFFICIENCY = 0.5
FLOAT = 4  # bytes of a parameter, of its gradient and of each of Adam's two moments


class Plan(NamedTuple):
    """Figures of one step; bytes and seconds are per device. `formulae` explains each by its name."""

    figures: dict[str, float]
    formulae: dict[str, str]


def known_flops(device_kind: str, dtype: str) -> float | None:
    """The data sheet's peak for `jax.Device.device_kind`, FLOPs per second; None for a device that is not listed."""
    names = [name for pattern, name in DEVICE_KINDS.items() if re.fullmatch(pattern, device_kind)]
    return _peak(ACCELERATORS[names[0]], dtype) if names else None


def _peak(accelerator: Accelerator, dtype: str) -> float:
    return accelerator.flops if dtype == "bfloat16" else accelerator.single


def longest_batch(config: Config) -> tuple[int, int]:
    """(length, rows) of a batch in the longest bucket used."""
    length = min(width for width in config.data.buckets if width >= config.data.max_len)
    multiple = config.data.row_multiple
    return length, max(multiple, config.data.batch_tokens // length // multiple * multiple)


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
        raise UserError(f"a plan counts Transformers of texts, not model.family={model.family!r} of {model.inputs}")
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


def make_plan(config: Config, shapes: dict[str, tuple[int, ...]], layout: Layout, accelerator: Accelerator) -> Plan:
    """The plan of a step of the longest bucket. UserError: `step_flops` does not support the model, or the rows do not
    divide."""
    model, sizes = config.model, dict(layout.mesh.shape)
    data, fsdp, tensor = (sizes[axis] for axis in ("data", "fsdp", "tensor"))
    length, rows = longest_batch(config)
    check_rows(layout, [(rows, length)], config.mesh.accumulate)
    micro = rows // (data * fsdp * config.mesh.accumulate)  # rows that a device computes at once
    number = 2 if model.dtype == "bfloat16" else 4
    peak = _peak(accelerator, model.dtype) * data * fsdp * tensor  # of all devices
    layers = model.num_layers * (2 if model.family == "encoder_decoder" else 1)
    crosses = model.num_layers if model.family == "encoder_decoder" else 0

    scanned = model.scan_layers or model.remat == "full"  # weights are gathered again in the backward pass
    again = model.remat == "full"
    table = math.prod(output_shape(shapes))
    split = 1 if "vocabulary" in layout.whole else tensor

    parameters = sum(math.prod(shape) for shape in shapes.values())
    held = sum(shard_size(layout, path, shape) for path, shape in shapes.items())
    once = step_flops(config, shapes, rows, length)
    flops = once + (once - 6.0 * rows * length * table) / 3 if again else once
    compute = flops / (peak * EFFICIENCY)

    stream = micro * length * model.d_model * number  # bytes of the residual stream of one device
    inner = micro * length * number * (4 * model.num_heads * head_width(model) + 2 * model.d_ff) / tensor
    layer = 4 * stream + inner
    kept = layers * stream + layer if again else layers * layer + crosses * (2 * stream + inner / 2)
    logits = 2 * FLOAT * max(tuned().loss_tokens, micro) * output_shape(shapes)[0] / split
    tables, each = FLOAT * table / split, FLOAT * (parameters - table) / tensor
    gathered = (2 * tables + 2 * each / layers if scanned else 2 * tables + each) if fsdp > 1 else 0.0
    memory = 4 * FLOAT * held + gathered + kept + logits

    gathers = config.mesh.accumulate * 3 * FLOAT * parameters / tensor * (fsdp - 1) / fsdp
    reduces = config.mesh.accumulate * 2 * FLOAT * held * (data - 1) / data
    streams = (6 if again else 4) * layers + (3 if again else 2) * crosses + (2 + bool(crosses)) * (split > 1)
    sums = config.mesh.accumulate * streams * stream * 2 * (tensor - 1) / tensor

    def link(axis_size: int, inside: int) -> float:
        """Bandwidth of an axis whose neighbours are `inside` devices apart. A ring over several machines enters each
        once, over the links of all its devices there."""
        if axis_size * inside <= accelerator.machine:
            return accelerator.near
        return min(accelerator.near, accelerator.far * max(1, accelerator.machine // inside))

    hidden = gathers / link(fsdp, tensor) + reduces / link(data, tensor * fsdp)
    waited = sums / link(tensor, 1)
    seconds = max(compute, hidden) + waited
    figures = {
        "parameters": parameters,
        "tokens": rows * length,
        "flops": flops,
        "compute_seconds": compute,
        "fsdp_bytes": gathers,
        "data_bytes": reduces,
        "tensor_bytes": sums,
        "collective_seconds": hidden + waited,
        "step_seconds": seconds,
        "tokens_per_second": rows * length / seconds,
        "mfu": once / (seconds * peak),
        "state_bytes": 3 * FLOAT * held,
        "memory_bytes": memory,
        "memory_share": memory / accelerator.memory,
    }
    formulae = {
        "flops": "3 · tokens · (2 · weights + 2 H (K + M) · keys seen), and the layers' third again with remat=full",
        "compute_seconds": f"flops / (devices · peak of model.dtype · {EFFICIENCY})",
        "fsdp_bytes": "micro-batches · 3 · 4 B · parameters / tensor · (fsdp - 1) / fsdp: 2 gathers, 1 reduce-scatter",
        "data_bytes": "micro-batches · 2 · 4 B · parameters held · (data - 1) / data: one all-reduce of the gradient",
        "tensor_bytes": "micro-batches · 2 (tensor - 1) / tensor · residual stream · (4 layers + 2 cross, 6 and 3 with "
        "remat=full, + 2 or 3 of a split vocabulary)",
        "collective_seconds": "bytes / bandwidth of the link that the axis lies on",
        "step_seconds": "max(compute, fsdp + data) + tensor: what gathers and reduces weights overlaps with computing",
        "mfu": "flops without remat / (step_seconds · devices · peak)",
        "state_bytes": "4 B · 3 · parameters held: weights and Adam's two moments",
        "memory_bytes": "state, gradient, layers · (4 D + (4 H K + 2 F) / tensor) · positions, logits of a slice; with "
        "fsdp the output table, its gradient and 2 layers whole (all of them without scan_layers); no scores",
    }
    return Plan(figures, formulae)


def shard_size(layout: Layout, path: str, shape: tuple[int, ...]) -> int:
    """How many elements of a parameter one device holds."""
    split = math.prod(layout.mesh.shape[str(axis)] for axis in layout.spec(path, shape) if axis is not None)
    return math.prod(shape) // split
