"""What attention alone costs: the gradient of the sum of its squares with respect to q, k and v."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from experiments.lab.timing import columns, take_turns

# One sequence, causal, of the kinds that a sweep compares.
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
HEADS, HEAD_DIM = 4, 32
SECONDS = 30.0  # of rounds in all, most of them at the lengths that need it


def draw(length: int, heads: int, head_dim: int, rows: int = 1) -> np.ndarray:
    """Random q, k and v of some sequences [3, B, L, H, K], float32."""
    return np.random.default_rng(length).standard_normal((3, rows, length, heads, head_dim), dtype=np.float32)


def gradients(
    kinds: Mapping[str, Callable[..., Any]], q: Any, k: Any, v: Any
) -> tuple[dict[str, Callable[[], Any]], dict[str, int | None]]:
    """Kind -> a compiled run, forward and backward, of an attention of q, k and v [B, L, H, K]; and kind -> the bytes
    that it takes besides its arguments and results, None where they are not known."""
    import jax
    import jax.numpy as jnp

    runs: dict[str, Callable[[], Any]] = {}
    memory: dict[str, int | None] = {}
    for kind, attention in kinds.items():
        total = lambda *x, attention=attention: (attention(*x).astype(jnp.float32) ** 2).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, v).compile()
        runs[kind] = partial(lambda compiled: jax.block_until_ready(compiled(q, k, v)), compiled)
        analysis = compiled.memory_analysis()
        memory[kind] = None if analysis is None else analysis.temp_size_in_bytes
    return runs, memory


def milliseconds(
    kinds: Mapping[str, tuple[int | None, str]], lengths: tuple[int, ...] = LENGTHS, seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """Rows {"kind", "length"} with those of `timing.columns`; a kind is a window (None: all is seen) and a backend of
    `attend`."""
    import jax.numpy as jnp

    from transformer.model.attention import attend

    attentions = {
        kind: partial(attend, causal=True, window=window, backend=backend) for kind, (window, backend) in kinds.items()
    }
    share = seconds / sum(length**2 for length in lengths)
    rows = []
    for length in lengths:
        runs, _ = gradients(attentions, *jnp.asarray(draw(length, HEADS, HEAD_DIM)))
        times = take_turns(runs, max(0.5, share * length**2))
        rows += [{"kind": kind, "length": length, **columns(ms)} for kind, ms in times.items()]
    return rows
