"""One output per row, token by token: the loop, and greedy choice."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from transformer.decoding.hypotheses import Decoded, Step, room, without_eos

Choice = Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]
"""`choose(logits, count) -> tokens`: what each row writes after `count` tokens."""


def write(
    step: Step,
    state: Any,
    first_tokens: Int[Array, " B"],
    first_positions: Int[Array, " B"],
    max_new: int,
    limit: int | None,
    eos_id: int,
    min_new: int,
    choose: Choice,
) -> Decoded:
    """Up to `max_new` chosen tokens per row, in one while loop that ends when all rows have ended: with EOS, which is
    forbidden among the first `min_new` tokens, at the last position (`limit`, None = any number), or with invalid
    logits."""
    rows = first_tokens.shape[0]
    rooms = room(first_positions, max_new, limit)
    nothing = jnp.full((rows, max_new), eos_id, jnp.int32)
    zeros = jnp.zeros(rows)

    def goes_on(carry: tuple[Any, ...]) -> Array:
        count, _, done, *_ = carry
        return (count < max_new) & ~done.all()

    def one_more(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, tokens, done, written, lengths, log_probs, ok, state = carry
        logits, state = step(tokens[:, None], (first_positions + count)[:, None], state)
        logits = logits.astype(jnp.float32)
        chosen = choose(without_eos(logits, eos_id, count < min_new), count).astype(jnp.int32)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=1)[:, 0]
        ok = ok & (done | jnp.isfinite(log_prob))
        chosen = jnp.where(done, eos_id, chosen)
        written = lax.dynamic_update_slice_in_dim(written, chosen[:, None], count, axis=1)
        log_probs = jnp.where(done, log_probs, log_probs + log_prob)
        lengths = jnp.where(done, lengths, count + 1)
        done = done | (chosen == eos_id) | (count + 1 >= rooms) | ~ok
        return count + 1, chosen, done, written, lengths, log_probs, ok, state

    start = (
        jnp.int32(0),
        first_tokens.astype(jnp.int32),
        rooms < 1,
        nothing,
        jnp.zeros(rows, jnp.int32),
        zeros,
        jnp.ones(rows, bool),
        state,
    )
    end = lax.while_loop(goes_on, one_more, start) if max_new else start
    _, _, _, written, lengths, log_probs, ok, _ = end
    return Decoded(written[:, None], lengths[:, None], log_probs[:, None], log_probs[:, None], ok)


def greedy(
    step: Step,
    state: Any,
    first_tokens: Int[Array, " B"],
    first_positions: Int[Array, " B"],
    max_new: int,
    limit: int | None,
    eos_id: int,
    *,
    min_new: int = 0,
) -> Decoded:
    """The most likely token at every step; ties go to the lowest id. `write` says when a row ends."""

    def choose(logits: Float[Array, "B V"], count: Int[Array, ""]) -> Int[Array, " B"]:
        return jnp.argmax(logits, axis=-1)

    return write(step, state, first_tokens, first_positions, max_new, limit, eos_id, min_new, choose)
