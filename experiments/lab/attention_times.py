"""What attention alone costs, by its window and its form: the gradient of its sum with respect to q, k and v."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from experiments.attention_cost import take_turns

# One sequence, forward and backward, causal; the kinds take turns.
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
HEADS, HEAD_DIM = 4, 32
SECONDS = 30.0  # of rounds in all, most of them at the lengths that need it


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

    def timed(run: Callable[..., Any], *arrays: Any) -> None:
        jax.block_until_ready(run(*arrays))

    steps = {kind: step(*form) for kind, form in kinds.items()}
    rows = []
    share = seconds / sum(length**2 for length in lengths)
    for length in lengths:
        rng = np.random.default_rng(length)
        q, k, v = jnp.asarray(rng.standard_normal((3, 1, length, HEADS, HEAD_DIM), dtype=np.float32))
        runs = {kind: functools.partial(timed, run, q, k, v) for kind, run in steps.items()}
        rows += [
            {"kind": kind, "length": length, "milliseconds": float(np.median(ms)), "rounds": len(ms)}
            for kind, ms in take_turns(runs, max(0.5, share * length**2)).items()
        ]
    return rows
