"""Sampling with one random key per row."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from transformer.decoding.greedy import write
from transformer.decoding.hypotheses import Decoded, Step
from transformer.errors import UserError

# Totals of probabilities are compared with top_p up to this: in float32 they are rounded, over any vocabulary, by less.
ROUNDING = 1e-6
COLDEST, HOTTEST = 1e-30, 1e30  # what is beyond draws the same, and its reciprocal need not be a float32


def sentence_keys(seed: int, numbers: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key per sentence number, so that a sample does not depend on the rest of the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)


def sample(
    step: Step,
    state: Any,
    first_tokens: Int[Array, " B"],
    first_positions: Int[Array, " B"],
    max_new: int,
    limit: int | None,
    eos_id: int,
    *,
    keys: Key[Array, " B"] | UInt32[Array, "B words"],
    min_new: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
    """Token n of a row is drawn with fold_in(its key, n), from softmax(logits / temperature) restricted first to the
    `top_k` most likely tokens (0 = all; ties to the lowest id), then to the fewest most likely ones with a total
    probability of at least `top_p` (nucleus; Holtzman et al. 2020, section 3.1). A tiny temperature gives the most
    likely token, and equally likely ones with equal shares. Scores are the model's log-probabilities, at temperature 1
    over the whole vocabulary. `write` says when a row ends. UserError: a temperature of 0 or below, or infinite, a
    negative top_k, a top_p outside of (0, 1]."""
    if not 0 < temperature < math.inf:
        raise UserError(
            f"temperature must be above 0 and finite, not {temperature}: for the most likely token, decode greedily"
        )
    if top_k < 0:
        raise UserError(f"top_k must be 0 (all tokens) or more, not {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, not {top_p}")

    def choose(logits: Float[Array, "B V"], count: Int[Array, ""]) -> Int[Array, " B"]:
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
        draw = jax.vmap(jax.random.categorical)
        # Relative to the largest, so that a tiny divisor makes the others -inf and nothing +inf.
        logits = (logits - logits.max(axis=1, keepdims=True)) / min(max(temperature, COLDEST), HOTTEST)
        if not top_k and top_p == 1:
            return draw(now, logits)
        values, ids = jax.lax.top_k(logits, min(top_k or logits.shape[1], logits.shape[1]))
        shares = jax.nn.softmax(values)
        before = jnp.cumsum(shares, axis=1) - shares  # of the more likely tokens: 0 for the first
        first = jnp.arange(values.shape[1]) == 0
        values = jnp.where(first | (before < top_p - ROUNDING) | (top_p == 1), values, -jnp.inf)
        return jnp.take_along_axis(ids, draw(now, values)[:, None], axis=1)[:, 0]

    return write(step, state, first_tokens, first_positions, max_new, limit, eos_id, min_new, choose)
