"""FLOPs of an instruction: its matrix products, which are what the peaks of data sheets count."""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from transformer.accelerators.hlo import Array, Computation, Instruction, Module

# The share of an attention's scores that are not masked, from where in the program it is called.
Seen = Callable[[str], float]
# Custom calls that move no data and compute nothing: names of the compilers' own bookkeeping.
BOOKKEEPING = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
    "LayoutConstraint",
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
}


class Products(NamedTuple):
    """FLOPs of products, and of them those of float32 operands."""

    flops: float = 0.0
    single: float = 0.0


def everything(_: str) -> float:
    """Of the scores of an attention none is masked."""
    return 1.0


def products(instruction: Instruction, computation: Computation, module: Module, seen: Seen = everything) -> Products:
    """The FLOPs of one instruction, and of all that is fused into it. Kernels count by the shapes of their operands:
    attention from its queries, keys and values, and from the mask that the call names or else from `seen`."""
    if instruction.opcode == "dot":
        flops = _dot(instruction, computation.arrays(instruction.operands[0])[0])
    elif instruction.opcode == "convolution":
        flops = _convolution(instruction, *(computation.arrays(name)[0] for name in instruction.operands))
    elif instruction.opcode == "custom-call":
        flops = _custom_call(instruction, [computation.arrays(name) for name in instruction.operands], seen)
    elif instruction.fuses or instruction.opcode == "call":
        found = [
            products(inner, called, module, seen)
            for name in instruction.called("calls", "to_apply")
            if (called := module.computations.get(name))
            for inner in called.instructions.values()
        ]
        return Products(sum(one.flops for one in found), sum(one.single for one in found))
    else:
        return Products()
    wide = all(array.dtype == "f32" for array in _matrices(instruction, computation))
    return Products(flops, flops if wide else 0.0)


def kernel(instruction: Instruction) -> str | None:
    """The name of the kernel that a custom call runs; None for what is none."""
    if instruction.opcode not in ("custom-call", "custom-call-start") or instruction.target in BOOKKEEPING:
        return None
    if instruction.target.startswith("__cu"):  # __cudnn$fmhaSoftmax, __cublas$gemm
        return instruction.target
    return re.sub(r"(\.(\d+|clone|remat\d*))+$", "", instruction.name)  # Pallas names the instruction


def is_attention(name: str) -> bool:
    """Whether a kernel of this name is one of attention."""
    return re.search(r"attention|splash|flash|mha", name) is not None


def _matrices(instruction: Instruction, computation: Computation) -> list[Array]:
    arrays = [array for name in instruction.operands for array in computation.arrays(name)]
    return [array for array in arrays if len(array.dims) > 1 and re.match(r"f|bf", array.dtype)][:3]


def _dot(instruction: Instruction, left: Array) -> float:
    axes = _integers(instruction.attributes, "lhs_contracting_dims")
    return 2.0 * math.prod(instruction.results[0].dims) * math.prod(left.dims[axis] for axis in axes)


def _integers(attributes: str, key: str) -> list[int]:
    found = re.search(rf"\b{key}=\{{([\d,]*)\}}", attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []


def _convolution(instruction: Instruction, left: Array, right: Array) -> float:
    """Products of numbers, where a window lies on the input and not on padding or between its dilated entries. TPUs
    write batched matrix products in this way."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, f"a convolution without dim_labels: {instruction.name}"
    lhs, rhs, out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    told = dict(part.split("=") for part in window[1].split()) if window else {}

    def of(key: str, axis: str) -> int:
        return int(told[key].split("x")[int(axis)].split("_")[0]) if key in told else int(key != "pad")

    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    batch = left.dims[lhs.index("b")] // (int(groups[1]) if groups else 1)
    flops = 2.0 * batch * right.dims[rhs.index("i")] * right.dims[rhs.index("o")]
    for axis in sorted(set(lhs) - set("bf")):
        inputs, outputs = left.dims[lhs.index(axis)], instruction.results[0].dims[out.index(axis)]
        at = np.arange(outputs)[:, None] * of("stride", axis) - of("pad", axis)
        at = at + np.arange(of("size", axis)) * of("rhs_dilate", axis)  # on the input and its holes
        spread = of("lhs_dilate", axis)
        flops *= int(((at >= 0) & (at <= (inputs - 1) * spread) & (at % spread == 0)).sum())
    return flops


def _custom_call(instruction: Instruction, operands: Sequence[tuple[Array, ...]], seen: Seen) -> float:
    target, name = instruction.target, kernel(instruction)
    if name is None:
        return 0.0
    if target.startswith("__cudnn$fmha"):
        return _cudnn_attention(instruction, operands)
    if target.startswith("__cublas"):
        config = json.loads(_braces(instruction.attributes, "backend_config="))["gemm_backend_config"]
        axes = [int(axis) for axis in config["dot_dimension_numbers"]["lhs_contracting_dimensions"]]
        left = operands[0][0]
        return 2.0 * math.prod(instruction.results[0].dims) * math.prod(left.dims[axis] for axis in axes)
    if is_attention(f"{name} {instruction.source}"):
        return _attention(instruction, name, operands, seen)
    return 0.0


def _braces(text: str, key: str) -> str:
    """The JSON object after a key."""
    start = text.index(key) + len(key)
    return text[start : start + json.JSONDecoder().raw_decode(text[start:])[1]]


def _cudnn_attention(instruction: Instruction, operands: Sequence[tuple[Array, ...]]) -> float:
    config = json.loads(_braces(instruction.attributes, "backend_config="))["cudnn_fmha_backend_config"]
    batch, heads, length, keys = (int(size) for size in config["intermediate_tensor_shape"]["dimensions"])
    width, values = operands[0][0].dims[-1], operands[2][0].dims[-1]
    scores = length * keys
    if "CAUSAL" in config["mask_type"]:
        visible = np.minimum(np.arange(length) + 1 + max(keys - length, 0), keys)
        window = int(config.get("sliding_window_length", 0))
        scores = int(np.minimum(visible, window).sum() if window > 0 else visible.sum())
    each = 3 * width + 2 * values if instruction.target.endswith("Backward") else width + values
    return 2.0 * batch * heads * scores * each


def _attention(instruction: Instruction, name: str, operands: Sequence[tuple[Array, ...]], seen: Seen) -> float:
    """Of a Pallas kernel: queries, keys and values are the first three operands with heads. On TPUs their axes are
    heads, positions, width, and on GPUs positions, heads, width."""
    arrays = [array for several in operands for array in several]
    arrays = [array for array in arrays if len(array.dims) >= 3 and re.match(r"f|bf", array.dtype)]
    if len(arrays) < 3:
        return 0.0
    q, k, v = arrays[:3]
    keys = k.dims[-2] if instruction.target.startswith("tpu") else k.dims[-3]
    width, values = q.dims[-1], v.dims[-1]
    if "dkv" in name:  # with the gradient of the queries in it, or not
        fused = sum(len(array.dims) >= 3 and array.dims[-2:] == q.dims[-2:] for array in instruction.results) > 2
        each = (3 if fused else 2) * width + 2 * values
    elif "dq" in name:
        each = 2 * width + values
    elif "transpose(" in instruction.source or "bwd" in name:
        each = 3 * width + 2 * values
    else:
        each = width + values
    return 2.0 * math.prod(q.dims[:-1]) * keys * each * seen(instruction.source)
