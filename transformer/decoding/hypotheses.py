"""The inputs and outputs of the decoding strategies."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Step = Callable[[Int[Array, "B 1"], Int[Array, "B 1"], Any], tuple[Float[Array, "B V"], Any]]
"""`step(tokens, positions, state) -> (logits, state)`: the logits of what follows one more token of each row."""


class Decoded(NamedTuple):
    """The n best outputs of each row, best first. An output ends with EOS or at the length limit, and is filled up with
    EOS. Where a search found fewer than n, the rest have length 0 and score -inf."""

    tokens: Int[Array, "B n max_new"]
    lengths: Int[Array, "B n"]  # number of tokens, with EOS
    log_probs: Float[Array, "B n"]  # the sum of the model's log-probabilities of these tokens
    scores: Float[Array, "B n"]  # the ranking: log_probs, or log_probs over a length penalty
    ok: Bool[Array, " B"]  # False: the logits were invalid (NaN, +inf, or -inf everywhere), and so are the tokens


def room(first_positions: Int[Array, " B"], max_new: int, limit: int | None) -> Int[Array, " B"]:
    """The most tokens that each row may get: `max_new`, or what is left of a model's `limit` positions."""
    if limit is None:
        return jnp.full_like(first_positions, max_new)
    return jnp.clip(limit - first_positions, 0, max_new)


def without_eos(logits: Float[Array, "rows V"], eos_id: int, forbidden: Bool[Array, ""]) -> Float[Array, "rows V"]:
    """The logits, with EOS at -inf where it is forbidden."""
    return jnp.where(forbidden & (jnp.arange(logits.shape[-1]) == eos_id), -jnp.inf, logits)


def ensemble(steps: Sequence[Step]) -> Step:
    """One step of several models; its state is the tuple of theirs. It gives the mean of their log-probabilities, the
    logarithm of the geometric mean, which the strategies normalise as they do all logits."""

    def step(
        tokens: Int[Array, "B 1"], positions: Int[Array, "B 1"], state: Any
    ) -> tuple[Float[Array, "B V"], tuple[Any, ...]]:
        logits, states = zip(*(one(tokens, positions, its) for one, its in zip(steps, state, strict=True)), strict=True)
        return jnp.stack([jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits]).mean(axis=0), states

    return step
