"""The cross-entropy of single tokens, from their logits."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer.platforms import tuned

_LOWEST = float(jnp.finfo(jnp.float32).min)


class TokenLosses(NamedTuple):
    """`loss` is the smoothed cross-entropy, `nll` the one without smoothing, `log_total` the logarithm of the softmax's
    denominator (all in nats), and `correct` says whether no logit is larger than that of the target."""

    loss: Float[Array, "*B"]
    nll: Float[Array, "*B"]
    log_total: Float[Array, "*B"]
    correct: Bool[Array, "*B"]


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def token_losses(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], label_smoothing: float, vocabulary: int
) -> TokenLosses:
    """The smoothed cross-entropy (Szegedy et al. 2016; paper, section 5.4) against q = (1 - ε) · onehot + ε / V, in
    closed form, without a one-hot array:

        -Σ q log p = logsumexp(z) - (1 - ε) z_target - ε mean(z)

    Only the first `vocabulary` logits, given in float32, are of tokens. The derivative of the loss is softmax(z) - q,
    which is written out so that it reads the logits once."""
    sums = _one_pass if tuned().one_pass else _pass_by_pass
    peak, log_total, target_logit, mean = sums(logits, targets, vocabulary)
    loss = nll = log_total - target_logit
    if label_smoothing:
        loss = log_total - (1 - label_smoothing) * target_logit - label_smoothing * mean
    return TokenLosses(loss, nll, log_total, target_logit >= peak)  # ties count as right


@token_losses.defjvp
def _(label_smoothing: float, vocabulary: int, primals: Any, tangents: Any) -> tuple[TokenLosses, TokenLosses]:
    (logits, targets), change = primals, tangents[0]
    losses, ids = token_losses(logits, targets, label_smoothing, vocabulary), jnp.arange(logits.shape[-1])
    of_tokens = jnp.where(ids < vocabulary, jnp.exp(logits - losses.log_total[..., None]), 0)
    onehot = (ids == targets[..., None]).astype(logits.dtype)
    smoothed = (1 - label_smoothing) * onehot + jnp.where(ids < vocabulary, label_smoothing / vocabulary, 0)
    loss, nll, log_total = (((of_tokens - wanted) * change).sum(axis=-1) for wanted in (smoothed, onehot, 0))
    return losses, TokenLosses(loss, nll, log_total, jnp.zeros(losses.correct.shape, jax.dtypes.float0))


def _terms(logits: Array, targets: Array, vocabulary: int) -> tuple[Array, Array, Array]:
    """What goes into the maximum, the target's logit and the mean. Comparing and adding the target's logit, instead of
    a gather, is fused with other sums."""
    ids = jnp.arange(logits.shape[-1])
    of_tokens, counted = logits, logits
    if vocabulary < len(ids):
        of_tokens, counted = (jnp.where(ids < vocabulary, logits, other) for other in (-jnp.inf, 0))
    return of_tokens, jnp.where(ids == targets[..., None], logits, 0), counted


def _pass_by_pass(logits: Array, targets: Array, vocabulary: int) -> tuple[Array, ...]:
    """Maximum, logsumexp, the target's logit and the mean, each as a sum over the logits of its own."""
    of_tokens, of_target, counted = _terms(logits, targets, vocabulary)
    total = jax.nn.logsumexp(of_tokens, axis=-1)
    return of_tokens.max(axis=-1), total, of_target.sum(axis=-1), counted.sum(axis=-1) / vocabulary


def _one_pass(logits: Array, targets: Array, vocabulary: int) -> tuple[Array, ...]:
    """The same in one reduction, which reads the logits once: sums of exponentials are rescaled to the larger maximum
    where two parts meet (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax")."""
    of_tokens, of_target, counted = _terms(logits, targets, vocabulary)
    of_tokens = jnp.maximum(of_tokens, _LOWEST)  # the difference of two infinities would be NaN

    def together(left: Any, right: Any) -> tuple[Array, ...]:
        peak = jnp.maximum(left[0], right[0])
        total = left[1] * jnp.exp(left[0] - peak) + right[1] * jnp.exp(right[0] - peak)
        return peak, total, left[2] + right[2], left[3] + right[3]

    start = tuple(jnp.asarray(value, logits.dtype) for value in (_LOWEST, 0, 0, 0))
    parts = (of_tokens, jnp.ones_like(logits), of_target, counted)
    peak, total, target_logit, summed = lax.reduce(parts, start, together, (logits.ndim - 1,))
    return peak, peak + jnp.log(total), target_logit, summed / vocabulary
