"""Losses and metrics as (sum, weight) pairs, which are added over batches and devices and divided once, globally."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Pair = tuple[Float[Array, ""], Float[Array, ""]]


def cross_entropy(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    label_smoothing: float = 0.0,
) -> dict[str, Pair]:
    """Metrics of a batch, each a (sum, weight) pair over the tokens with weight 1.

    `loss` is the smoothed cross-entropy (Szegedy et al. 2016; paper, section 5.4) against the distribution
    q = (1 - ε) · onehot + ε / V, in closed form, with no one-hot array:

        -Σ q log p = logsumexp(z) - (1 - ε) z_target - ε mean(z)

    `nll` is the same with ε = 0 (nats), `token_accuracy` the share of tokens whose most likely one is right.
    """
    logits = logits.astype(jnp.float32)
    # A compare-and-sum instead of a gather: it fuses, and its gradient is a compare, not a scatter.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.where(is_target, logits, 0).sum(axis=-1)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    nll = log_total - target_logit
    loss = nll
    if label_smoothing:
        loss = log_total - (1 - label_smoothing) * target_logit - label_smoothing * logits.mean(axis=-1)
    # The target is the most likely token where nothing is above it (ties count as right).
    correct = target_logit >= logits.max(axis=-1)
    total = weights.sum()
    return {
        "loss": ((loss * weights).sum(), total),
        "nll": ((nll * weights).sum(), total),
        "token_accuracy": ((correct * weights).sum(), total),
    }


def add(left: dict[str, Pair], right: dict[str, Pair]) -> dict[str, Pair]:
    return jax.tree.map(jnp.add, left, right)


def means(metrics: dict[str, Pair]) -> dict[str, float]:
    """Sum / weight of every metric; 0 where nothing was counted."""
    return {name: float(total) / max(float(weight), 1e-9) for name, (total, weight) in metrics.items()}
