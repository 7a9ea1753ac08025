"""What attention alone costs, by its window and its form: the gradient of its sum with respect to q, k and v."""

import time
from collections.abc import Callable, Mapping
from typing import Any

# One sequence, forward and backward, causal; the kinds take turns.
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
HEADS, HEAD_DIM = 4, 32
ROUNDS = 7  # timings of each kind at each length, of which the median counts
SECONDS = 30.0  # in all; where a round is slow, there are fewer of them, at least 3


def milliseconds(
    kinds: Mapping[str, tuple[int | None, str]], lengths: tuple[int, ...] = LENGTHS, seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """Rows {"kind", "length", "milliseconds" (median), "rounds"}; a kind is a window (None: all is seen) and a backend
    of `attend`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from transformer.model.attention import attend

    def step(window: int | None, backend: str) -> Callable[..., Any]:
        def total(q: Any, k: Any, v: Any) -> Any:
            return attend(q, k, v, causal=True, window=window, backend=backend).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))

    steps = {kind: step(*form) for kind, form in kinds.items()}
    rows = []
    share = seconds / sum(length**2 for length in lengths)  # time goes to the lengths that need it
    for length in lengths:
        rng = np.random.default_rng(length)
        q, k, v = jnp.asarray(rng.standard_normal((3, 1, length, HEADS, HEAD_DIM), dtype=np.float32))
        for run in steps.values():
            jax.block_until_ready(run(q, k, v))  # compiles
        times: dict[str, list[float]] = {kind: [] for kind in steps}
        end = time.perf_counter() + max(0.5, share * length**2)
        for done in range(ROUNDS):
            if done >= 3 and time.perf_counter() > end:
                break
            for kind, run in steps.items():
                began = time.perf_counter()
                jax.block_until_ready(run(q, k, v))
                times[kind].append(1000 * (time.perf_counter() - began))
        rows += [
            {"kind": kind, "length": length, "milliseconds": float(np.median(ms)), "rounds": len(ms)}
            for kind, ms in times.items()
        ]
    return rows
