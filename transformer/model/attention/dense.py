"""The readable reference: all scores, then a mask. O(L·S) time and memory."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from transformer.model import masks
from transformer.model.attention.scores import Score
from transformer.model.products import product


def weighted_values(
    scores: Float[Array, "*B L S"], values: Float[Array, "*B S M"], mask: Bool[Array, "*#B L S"] | None
) -> Float[Array, "*B L M"]:
    """softmax(scores) · V over the visible keys (all without a mask), normalised after the product: exp(s - max) · V /
    sum exp(s - max). The softmax is in float32. A query that sees no key gives zeros with zero gradients, never NaN."""
    scores = scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    peak = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    weights = weights if mask is None else jnp.where(mask, weights, 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    summed = product(weights.astype(values.dtype), values)
    return (summed / jnp.where(total == 0, 1, total)).astype(values.dtype)


def dense(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    where: masks.Visibility,
    score: Score | None,
    scale: float,
) -> Float[Array, "B L H M"]:
    """softmax(score(scale · Q K^T)) V (Vaswani et al. 2017, equation 1), with H / G query heads on each key head."""
    batch, length, heads, _ = q.shape
    groups = k.shape[2]
    q = jnp.moveaxis(q * scale, 1, 2)  # [B, H, L, K]
    q = q.reshape(batch, groups, -1, *q.shape[2:])  # [B, G, H / G, L, K]
    k = jnp.moveaxis(k, 1, 2)[:, :, None]  # [B, G, 1, S, K]
    v = jnp.moveaxis(v, 1, 2)[:, :, None]
    if q.shape[2] > 1:  # one matmul broadcasts over the query heads of a group
        k, v = (jnp.broadcast_to(x, (*q.shape[:3], *x.shape[3:])) for x in (k, v))
    if length == 1:  # decoding: transpose the one query, not all keys
        scores = product(k, jnp.swapaxes(q, -1, -2))
        scores = jnp.swapaxes(scores, -1, -2)
    else:
        scores = product(q, jnp.swapaxes(k, -1, -2))
    if score is not None:
        of_heads = scores.reshape(batch, heads, *scores.shape[3:])
        scores = score(of_heads, where.q_positions, where.k_positions).reshape(scores.shape)
    mask = where.mask()
    out = weighted_values(scores, v, None if mask is None else mask[:, None, None])
    return jnp.moveaxis(out.reshape(batch, heads, length, -1), 1, 2)
