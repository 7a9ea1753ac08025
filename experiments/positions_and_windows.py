"""Do position encodings differ in quality, and does a sliding window cost quality?

Hypothesis: as in row (E) of Table 3 of the paper, sinusoidal and learned positions reach the same quality on sentences
of training length. On longer sentences they part: a learned table ends where training ended, the sinusoid goes on
without having been trained there. Without positions the decoder can still count through its causal mask, the encoder
cannot, so translation suffers. A window keeps the quality as long as N layers reach across the sentence (N times the
window), and pays only from some length on.

Source: Vaswani et al. 2017, "Attention is all you need", sections 3.5 and 5.4 and Table 3 (arXiv 1706.03762); windows:
Beltagy et al. 2020, "Longformer" (arXiv 2004.05150); no positions: Kazemnejad et al. 2023 (arXiv 2305.19466).
"""

import math
import time
from collections.abc import Callable
from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "sinusoidal-full"  # the paper's

POSITIONS = ("sinusoidal", "learned", "none")


def window(base: Config) -> int:
    """Visible neighbours a side: the largest power of two within a fifth of the longest sequence.

    8 of 40 tokens (quantities), 16 of 96 (Multi30k), 64 of 512 (docstrings).
    """
    return 2 ** int(math.log2(max(1, base.data.max_len // 5)))


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Variant -> the config keys in which it differs from the base."""
    attention = {"full": "full", "window": f"window:{window(base)}"}
    return {
        f"{positions}-{name}": {"model.positions": positions, "model.attention": [pattern]}
        for positions in POSITIONS
        for name, pattern in attention.items()
    }


# How the cost is measured: one sequence, forward and backward, causal; the kinds of attention take turns.
COST_LENGTHS = (128, 256, 512, 1024, 2048, 4096)
COST_HEADS, COST_HEAD_DIM = 4, 32
COST_ROUNDS = 7  # timings of each kind at each length, of which the median counts
COST_SECONDS = 30.0  # in all; where a round is slow, there are fewer of them, at least 3


def cost(base: Config, lengths: tuple[int, ...] = COST_LENGTHS, seconds: float = COST_SECONDS) -> list[dict[str, Any]]:
    """Times one training step's worth of each attention: the gradient of its sum with respect to q, k and v.

    Returns rows {"kind", "length", "milliseconds" (median), "rounds"}, for dense full attention, the window as a
    mask on the dense form, and the window as a band that skips the work outside it.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from transformer.model.attention import attend

    def step(window: int | None, backend: str) -> Callable[..., Any]:
        def total(q: Any, k: Any, v: Any) -> Any:
            return attend(q, k, v, causal=True, window=window, backend=backend).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))

    width = window(base)
    kinds = {
        "full, dense": step(None, "dense"),
        f"window {width}, masked": step(width, "dense"),
        f"window {width}, banded": step(width, "banded"),
    }
    rows = []
    share = seconds / sum(length**2 for length in lengths)  # time goes to the lengths that need it
    for length in lengths:
        rng = np.random.default_rng(length)
        shape = (3, 1, length, COST_HEADS, COST_HEAD_DIM)
        q, k, v = jnp.asarray(rng.standard_normal(shape, dtype=np.float32))
        for run in kinds.values():
            jax.block_until_ready(run(q, k, v))  # compiles
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        end = time.perf_counter() + max(0.5, share * length**2)
        while len(times["full, dense"]) < COST_ROUNDS:
            if len(times["full, dense"]) >= 3 and time.perf_counter() > end:
                break
            for kind, run in kinds.items():
                began = time.perf_counter()
                jax.block_until_ready(run(q, k, v))
                times[kind].append(1000 * (time.perf_counter() - began))
        rows += [
            {"kind": kind, "length": length, "milliseconds": float(np.median(ms)), "rounds": len(ms)}
            for kind, ms in times.items()
        ]
    return rows
