"""What does attention cost, and does a window cost less?

Hypothesis: full attention takes time that grows with the square of the length and, by tiles, memory that grows with
the length; a window takes time and memory that grow with the length, in training as well. A window that only masks
the scores saves nothing.

Each kind does forward and backward passes (the gradient of the sum of squares with respect to q, k and v) of causal
sequences in float32 (bfloat16 on an accelerator), with heads of 64. "auto" is what `attend` takes by itself, "dense"
all scores at once. The peers are `jax.nn.dot_product_attention` (which computes all scores, of a window as well),
PyTorch's `scaled_dot_product_attention`, and for windows the blocked form in plain JAX
(experiments/lab/peers/blocked.py). In each case the kinds take turns, and each time is the median of its rounds; ratios
are medians of the rounds' ratios. Memory is what the compiled program asks for besides its arguments and results.

Source: Vaswani et al. 2017, Table 1 (arXiv 1706.03762); Rabe & Staats 2021, "Self-attention does not need O(n^2)
memory" (arXiv 2112.05682).
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab import figures
from experiments.lab.attention_times import draw, gradients
from experiments.lab.peers.blocked import best_block, blocked
from experiments.lab.render import Block, Table
from experiments.lab.timing import columns, exponent, ratio, take_turns

HEADS, HEAD_DIM, WINDOW = 8, 64, 128
SECONDS = 10.0  # of rounds of each case
# Rows times heads -> lengths. With eight, all lengths of the curves; with others, some short and some long ones.
LENGTHS = {
    HEADS: (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
    1: (64, 256, 1024),
    48: (64, 256, 1024),
    64: (1024, 8192),
    96: (32, 256, 1024),
}
# Rows times heads, and lengths, that are measured with windows of 16 and 32 as well.
NARROW, NARROW_AT = (16, 32), ((HEADS, 1024), (HEADS, 8192), (64, 1024), (64, 8192))
# Kind -> the most scores, of all rows and heads, that it is asked for, by time and memory on two cores.
MOST = {"jax.nn": 8 * 4096**2, "torch": 8 * 8192**2, "dense": 8 * 4096**2, "auto, full": 8 * 32768**2}


def cases() -> dict[str, dict[str, Any]]:
    """A case for each length and number of rows times heads."""
    pairs = [(units, length) for units, lengths in LENGTHS.items() for length in lengths]
    return {f"{units} x length {length}": {"units": units, "length": length} for units, length in pairs}


def _kinds(units: int, length: int) -> dict[str, Callable[..., Any]]:
    """Kind -> attention of q, k, v [B, L, H, K], for the kinds that exist here and are asked for this case."""
    import jax

    from transformer.model.attention import attend

    theirs = partial(jax.nn.dot_product_attention, is_causal=True)
    found: dict[str, Callable[..., Any]] = {
        "jax.nn, full": theirs,
        "dense, full": partial(attend, causal=True, backend="dense"),
        "auto, full": partial(attend, causal=True),
        f"jax.nn, window {WINDOW}": partial(theirs, local_window_size=(WINDOW, 0)),
    }
    for window in (*(NARROW if (units, length) in NARROW_AT else ()), WINDOW):
        if window < length:
            found[f"blocked, window {window}"] = partial(blocked, window=window, block=best_block(window))
            found[f"auto, window {window}"] = partial(attend, causal=True, window=window)
    return {kind: function for kind, function in found.items() if _is_asked(kind, units, length)}


def _is_asked(kind: str, units: int, length: int) -> bool:
    return units * length**2 <= next((most for start, most in MOST.items() if kind.startswith(start)), np.inf)


def measure_case(units: int, length: int) -> list[dict[str, Any]]:
    """Rows {"kind", "units" (rows times heads), "length", "bytes" (None for torch)} with those of `timing.columns`."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    heads = min(HEADS, units)
    data = draw(length, heads, HEAD_DIM, units // heads)
    runs, memory = gradients(_kinds(units, length), *jnp.asarray(data, dtype))
    if _is_asked("torch", units, length) and (torch_run := _torch(data)) is not None:
        runs["torch, full"], memory["torch, full"] = torch_run, None
    return [
        {"kind": kind, "units": units, "length": length, "bytes": memory[kind], **columns(ms)}
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
    at = {(row["kind"], row["units"], row["length"]): row for row in rows}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    answer = [*_ratios(at, kinds), *_growth([row for row in rows if row["units"] == HEADS], kinds)]
    curves = [row for row in rows if row["units"] == HEADS and row["kind"].endswith(("full", f"window {WINDOW}"))]
    blocks: list[Block] = [
        *figures.cost(curves, folder),
        _table(at, kinds, lambda row: f"{row['milliseconds']:,.1f}", "Milliseconds of one forward and backward pass."),
        *figures.memory([row for row in curves if row["bytes"]], folder),
        _table(
            at,
            kinds,
            lambda row: f"{row['bytes'] / 2**20:,.1f}" if row["bytes"] else "–",
            "MiB that the compiled forward and backward pass takes besides its arguments and results.",
        ),
    ]
    return answer, blocks


At = dict[tuple[str, int, int], dict[str, Any]]  # kind, rows times heads, length -> row


def _ratios(at: At, kinds: list[str]) -> list[str]:
    """How many times as fast as each peer `attend` is, and what share of its memory it takes."""
    found = []
    for ours in [kind for kind in kinds if kind.startswith("auto, ")]:
        what = ours.removeprefix("auto, ")
        for peer in [kind for kind in kinds if kind.endswith(f", {what}") and kind != ours]:
            pairs = {(units, n): (at[ours, units, n], row) for (kind, units, n), row in at.items() if kind == peer
                     and (ours, units, n) in at}  # fmt: skip
            faster = ", ".join(
                f"{ratio(theirs, own):.2f} at {units} x {n:,}" for (units, n), (own, theirs) in pairs.items()
            )
            if faster:
                found.append(
                    f"`{ours}` is so many times as fast as `{peer}`, by rows times heads and length: {faster}."
                )
            shares = [
                own["bytes"] / theirs["bytes"] for own, theirs in pairs.values() if own["bytes"] and theirs["bytes"]
            ]
            if peer.startswith("blocked") and shares:
                found.append(f"It takes {min(shares):.0%} to {max(shares):.0%} of the memory of `{peer}`.")
    return found


def _growth(rows: list[dict[str, Any]], kinds: list[str]) -> list[str]:
    """How time and memory grow with the length from 1,024 on."""
    fits, found = [], []
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind and row["length"] >= 1024]
        if len(own) < 3:
            continue
        lengths = [row["length"] for row in own]
        grows = [f"time with L^{exponent(lengths, [row['milliseconds'] for row in own]):.2f}"]
        if all(row["bytes"] for row in own):
            grows.append(f"memory with L^{exponent(lengths, [row['bytes'] for row in own]):.2f}")
        fits.append(f"`{kind}` {' and '.join(grows)}")
        if kind == f"auto, window {WINDOW}":
            per_token = [row["milliseconds"] / row["length"] * 1000 for row in own]
            found.append(
                f"A window's time a token: {per_token[0]:.1f} µs at {lengths[0]}, {per_token[-1]:.1f} µs at "
                f"{lengths[-1]}; over all lengths between them from {min(per_token):.1f} to {max(per_token):.1f} µs."
            )
    return found + ([f"Fitted from length 1,024 on: {'; '.join(fits)}."] if fits else [])


def _table(at: At, kinds: list[str], of: Callable[[dict[str, Any]], str], caption: str) -> Table:
    places = sorted({(units, length) for _, units, length in at}, key=lambda place: (place[0] != HEADS, place))
    body = [
        [f"{units} x {n:,}", *(of(at[kind, units, n]) if (kind, units, n) in at else "–" for kind in kinds)]
        for units, n in places
    ]
    return Table(["rows and heads x length", *kinds], body, caption)
