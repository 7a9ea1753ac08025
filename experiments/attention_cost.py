"""What does attention cost, and does a window cost less?

Hypothesis: full attention takes time that grows with the square of the length and, by tiles, memory that grows with
the length; a window takes time and memory that grow with the length, in training as well. A window that only masks
the scores saves nothing.

Each kind does forward and backward passes (the gradient of the sum of squares with respect to q, k and v) of one
causal sequence in float32 (bfloat16 on an accelerator), 8 heads of 64. At each length the kinds take turns, and each
time is the median of its rounds; ratios are medians of the rounds' ratios. Memory is what the compiled program asks
for besides its arguments and results.

Source: Vaswani et al. 2017, Table 1 (arXiv 1706.03762); Rabe & Staats 2021, "Self-attention does not need O(n^2)
memory" (arXiv 2112.05682).
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab import figures
from experiments.lab.attention_times import draw, gradients
from experiments.lab.render import Block, Table
from experiments.lab.timing import columns, exponent, ratio, take_turns

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
HEADS, HEAD_DIM, WINDOW = 8, 64, 128
SECONDS = 12.0  # of rounds at each length

# Kind -> the longest sequence that it is asked for, by time and memory on two cores.
LONGEST = {
    "jax.nn, full": 8192,
    "jax.nn, window": 8192,
    "torch, full": 8192,
    "dense, full": 8192,
    "strips, full": 2048,
    "strips, window": 2048,
    "blockwise, full": 32768,
    "banded, window": 65536,
    "fused, full": 65536,
    "fused, window": 65536,
}


def cases() -> dict[str, dict[str, Any]]:
    """A case for each length."""
    return {f"length {length}": {"length": length} for length in LENGTHS}


def _kinds(length: int) -> dict[str, Callable[..., Any]]:
    """Kind -> attention of q, k, v [1, L, H, K], for the kinds that exist here and are asked for this length."""
    import jax

    from transformer.model.attention import attend

    theirs, ours = jax.nn.dot_product_attention, attend
    found: dict[str, Callable[..., Any]] = {
        "jax.nn, full": lambda q, k, v: theirs(q, k, v, is_causal=True),
        "jax.nn, window": lambda q, k, v: theirs(q, k, v, is_causal=True, local_window_size=(WINDOW, 0)),
        "dense, full": lambda q, k, v: ours(q, k, v, causal=True, backend="dense"),
        "strips, full": lambda q, k, v: ours(q, k, v, causal=True, backend="strips"),
        "strips, window": lambda q, k, v: ours(q, k, v, causal=True, window=WINDOW, backend="strips"),
        "blockwise, full": lambda q, k, v: ours(q, k, v, causal=True, backend="blockwise"),
        "banded, window": lambda q, k, v: ours(q, k, v, causal=True, window=WINDOW, backend="banded"),
    }
    if jax.default_backend() != "cpu":
        found["fused, full"] = lambda q, k, v: ours(q, k, v, causal=True, backend="fused")
        found["fused, window"] = lambda q, k, v: ours(q, k, v, causal=True, window=WINDOW, backend="fused")
    return {kind: function for kind, function in found.items() if length <= LONGEST[kind]}


def measure_case(length: int) -> list[dict[str, Any]]:
    """Rows {"kind", "length", "bytes" (None for torch)} with those of `timing.columns`."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    data = draw(length, HEADS, HEAD_DIM)
    runs, memory = gradients(_kinds(length), *jnp.asarray(data, dtype))
    if length <= LONGEST["torch, full"] and (torch_run := _torch(data)) is not None:
        runs["torch, full"], memory["torch, full"] = torch_run, None
    return [
        {"kind": kind, "length": length, "bytes": memory[kind], **columns(ms)}
        for kind, ms in take_turns(runs, SECONDS).items()
    ]


def _torch(data: np.ndarray) -> Callable[[], Any] | None:
    """PyTorch's own attention on the same numbers and as many threads, where PyTorch is installed; on a CPU only."""
    import jax

    if importlib.util.find_spec("torch") is None or jax.default_backend() != "cpu":
        return None
    import torch

    q, k, v = (torch.tensor(x).transpose(1, 2).contiguous().requires_grad_() for x in data)

    def run() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad((out**2).sum(), (q, k, v))

    return run


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """The ratios that matter, in sentences; curves of time and memory; all numbers."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    at = {(row["kind"], row["length"]): row for row in rows}

    def over_lengths(slow: str, fast: str) -> str:
        """How many times as fast the second kind is."""
        both = [length for length in lengths if (slow, length) in at and (fast, length) in at]
        return ", ".join(f"{ratio(at[slow, n], at[fast, n]):.1f} at {n}" for n in both)

    answer = []
    for fast, others in (
        ("banded, window", ("jax.nn, window", "blockwise, full")),
        ("blockwise, full", ("jax.nn, full", "torch, full", "dense, full")),
        ("strips, full", ("jax.nn, full", "torch, full", "dense, full", "blockwise, full")),
        ("strips, window", ("jax.nn, window", "banded, window")),
        ("fused, window", ("fused, full",)),
    ):
        answer += [
            f"`{fast}` is so many times as fast as `{slow}`, by length: {text}."
            for slow in others
            if (text := over_lengths(slow, fast))
        ]
    window = [length for length in lengths if ("banded, window", length) in at and length >= 1024]
    if len(window) > 1:
        per_token = [at["banded, window", n]["milliseconds"] / n * 1000 for n in window]
        answer.append(
            f"A window's time a token: {per_token[0]:.1f} µs at {window[0]}, {per_token[-1]:.1f} µs at {window[-1]}; "
            f"over all lengths between them from {min(per_token):.1f} to {max(per_token):.1f} µs."
        )
    fits = []
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind and row["length"] >= 1024]
        if len(own) < 3:
            continue
        grows = [f"time with L^{exponent([r['length'] for r in own], [r['milliseconds'] for r in own]):.2f}"]
        if all(row["bytes"] for row in own):
            grows.append(f"memory with L^{exponent([r['length'] for r in own], [r['bytes'] for r in own]):.2f}")
        fits.append(f"`{kind}` {' and '.join(grows)}")
    if fits:
        answer.append(f"Fitted from length 1,024 on: {'; '.join(fits)}.")

    def table(of: Callable[[dict[str, Any]], str], caption: str) -> Table:
        body = [[f"{n:,}", *(of(at[kind, n]) if (kind, n) in at else "–" for kind in kinds)] for n in lengths]
        return Table(["length", *kinds], body, caption)

    blocks: list[Block] = [
        *figures.cost(rows, folder),
        table(lambda row: f"{row['milliseconds']:,.1f}", "Milliseconds of one forward and backward pass."),
        *figures.memory([row for row in rows if row["bytes"]], folder),
        table(
            lambda row: f"{row['bytes'] / 2**20:,.1f}" if row["bytes"] else "–",
            "MiB that the compiled forward and backward pass takes besides its arguments and results.",
        ),
    ]
    return answer, blocks
