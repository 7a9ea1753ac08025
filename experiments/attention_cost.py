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
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab import figures
from experiments.lab.render import Block, Table

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
HEADS, HEAD_DIM, WINDOW = 8, 64, 128
SECONDS = 12.0  # of rounds at each length, at least MIN_ROUNDS and at most MAX_ROUNDS of them
MIN_ROUNDS, MAX_ROUNDS = 3, 15
REST = 0.02  # seconds before each timing, in which the threads of the kind before come to rest

# Kind -> the longest sequence that it is asked for, by time and memory on two cores.
LONGEST = {
    "jax.nn, full": 8192,
    "jax.nn, window": 8192,
    "torch, full": 8192,
    "dense, full": 8192,
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
        "blockwise, full": lambda q, k, v: ours(q, k, v, causal=True, backend="blockwise"),
        "banded, window": lambda q, k, v: ours(q, k, v, causal=True, window=WINDOW, backend="banded"),
    }
    if jax.default_backend() != "cpu":
        found["fused, full"] = lambda q, k, v: ours(q, k, v, causal=True, backend="fused")
        found["fused, window"] = lambda q, k, v: ours(q, k, v, causal=True, window=WINDOW, backend="fused")
    return {kind: function for kind, function in found.items() if length <= LONGEST[kind]}


def measure_case(length: int) -> list[dict[str, Any]]:
    """Rows {"kind", "length", "milliseconds" (median), "rounds", "bytes" (None for torch), "times" (of each round)}."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    shape = (3, 1, length, HEADS, HEAD_DIM)
    data = np.random.default_rng(length).standard_normal(shape, dtype=np.float32)
    q, k, v = jnp.asarray(data, dtype)
    runs: dict[str, Callable[[], Any]] = {}
    memory: dict[str, int | None] = {}
    for kind, function in _kinds(length).items():
        total = lambda *x, function=function: (function(*x).astype(jnp.float32) ** 2).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, v).compile()
        analysis = compiled.memory_analysis()
        memory[kind] = None if analysis is None else analysis.temp_size_in_bytes
        runs[kind] = partial(lambda compiled: jax.block_until_ready(compiled(q, k, v)), compiled)
    if length <= LONGEST["torch, full"] and (torch_run := _torch(data)) is not None:
        runs["torch, full"], memory["torch, full"] = torch_run, None
    times = take_turns(runs, SECONDS)
    return [
        {"kind": kind, "length": length, "milliseconds": float(np.median(ms)), "rounds": len(ms),
         "bytes": memory[kind], "times": " ".join(f"{t:.3f}" for t in ms)}
        for kind, ms in times.items()
    ]  # fmt: skip


def take_turns(
    runs: Mapping[str, Callable[[], Any]], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of each run in each round: after one call of each that is not timed, the kinds take turns."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    end = clock() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and clock() > end:
            break
        for kind, run in runs.items():
            time.sleep(REST)
            began = clock()
            run()
            times[kind].append(1000 * (clock() - began))
    return times


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


def exponent(lengths: list[int], values: list[float]) -> float:
    """b of the least-squares fit value = a · length^b, on logarithmic axes."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """The ratios that matter, in sentences; curves of time and memory; all numbers."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    at = {(row["kind"], row["length"]): row for row in rows}

    def ratio(slow: str, fast: str, length: int) -> float | None:
        """How many times as fast the second kind is: the median over rounds."""
        if (slow, length) not in at or (fast, length) not in at:
            return None
        pair = [[float(t) for t in at[kind, length]["times"].split()] for kind in (slow, fast)]
        return float(np.median([a / b for a, b in zip(*pair, strict=True)]))

    def over_lengths(slow: str, fast: str) -> str:
        found = [(length, ratio(slow, fast, length)) for length in lengths]
        return ", ".join(f"{value:.1f} at {length}" for length, value in found if value is not None)

    answer = []
    for fast, others in (
        ("banded, window", ("jax.nn, window", "blockwise, full")),
        ("blockwise, full", ("jax.nn, full", "torch, full", "dense, full")),
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
