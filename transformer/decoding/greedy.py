"""The most likely token at every step."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Step = Callable[[Int[Array, "B 1"], Int[Array, "B 1"], Any], tuple[Float[Array, "B V"], Any]]


def greedy(
    step: Step,
    state: Any,
    first_tokens: Int[Array, " B"],
    first_positions: Int[Array, " B"],
    max_new: int,
    limit: int | None,
    eos_id: int,
) -> Int[Array, "B max_new"]:
    """Up to `max_new` tokens a row, in one while loop that ends when every row has written EOS.

    `limit` is the number of positions the model has: a row that has used them ends (None = any number).
    `step(tokens, positions, state)` gives the logits after one more token. What follows a row's EOS is EOS.
    Ties go to the lowest id.
    """
    rows = first_tokens.shape[0]
    written = jnp.full((rows, max_new), eos_id, jnp.int32)

    def goes_on(carry: tuple[Any, ...]) -> Array:
        count, _, done, _, _ = carry
        return (count < max_new) & ~done.all()

    def one_more(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, tokens, done, written, state = carry
        logits, state = step(tokens[:, None], (first_positions + count)[:, None], state)
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        best = jnp.where(done, eos_id, best)
        written = lax.dynamic_update_slice_in_dim(written, best[:, None], count, axis=1)
        done = done | (best == eos_id)
        if limit is not None:
            done = done | (first_positions + count + 1 >= limit)
        return count + 1, best, done, written, state

    start = (jnp.zeros((), jnp.int32), first_tokens.astype(jnp.int32), jnp.zeros(rows, bool), written, state)
    return lax.while_loop(goes_on, one_more, start)[3]
