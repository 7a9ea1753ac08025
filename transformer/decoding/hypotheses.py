"""What the strategies work on, and what they give back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Step = Callable[[Int[Array, "B 1"], Int[Array, "B 1"], Any], tuple[Float[Array, "B V"], Any]]
"""`step(tokens, positions, state) -> (logits, state)`: the logits of what follows one more token of each row."""


class Decoded(NamedTuple):
    """The n best outputs of each row, best first.

    An output ends with EOS, or where the row had no room for more; EOS fills what follows. Where a search found fewer
    than n, the rest have length 0 and score -inf.
    """

    tokens: Int[Array, "B n max_new"]
    lengths: Int[Array, "B n"]  # tokens written, EOS among them
    log_probs: Float[Array, "B n"]  # the sum over them of the model's own log-probabilities
    scores: Float[Array, "B n"]  # what the outputs are ranked by: log_probs, or those over a length penalty
    ok: Bool[Array, " B"]  # False: the logits were no distribution (NaN, +inf, or -inf everywhere): tokens mean nothing


def room(first_positions: Int[Array, " B"], max_new: int, limit: int | None) -> Int[Array, " B"]:
    """The most tokens that each row may write: `max_new`, or what a model of `limit` positions has left for it."""
    if limit is None:
        return jnp.full_like(first_positions, max_new)
    return jnp.clip(limit - first_positions, 0, max_new)


def without_eos(logits: Float[Array, "rows V"], eos_id: int, forbidden: Bool[Array, ""]) -> Float[Array, "rows V"]:
    """The logits, with EOS impossible where it is forbidden."""
    return jnp.where(forbidden & (jnp.arange(logits.shape[-1]) == eos_id), -jnp.inf, logits)


def ensemble(steps: Sequence[Step]) -> Step:
    """One step of several models, its state the tuple of theirs: the mean of their log-probabilities.

    It is the logarithm of the geometric mean, which the strategies normalise as they do all logits.
    """

    def step(
        tokens: Int[Array, "B 1"], positions: Int[Array, "B 1"], state: Any
    ) -> tuple[Float[Array, "B V"], tuple[Any, ...]]:
        logits, states = zip(*(one(tokens, positions, its) for one, its in zip(steps, state, strict=True)), strict=True)
        return jnp.stack([jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits]).mean(axis=0), states

    return step
