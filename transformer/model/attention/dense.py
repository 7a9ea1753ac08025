"""The readable reference: all scores, then a mask. O(L·S) time and memory."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from transformer.model import masks
from transformer.model.attention.marks import unmarked
from transformer.model.attention.scores import HIDDEN, LOWEST, Score
from transformer.model.products import product, wide


@jax.custom_jvp
def products(q: Float[Array, "*B L K"], k: Float[Array, "*B S K"]) -> Float[Array, "*B L S"]:
    """Q K^T, of marked queries and keys. Its derivatives are those of unmarked ones, by products in the type of q."""
    return _products(q, k, wide(q))


def _products(q: Array, k: Array, kind: Any) -> Array:
    if q.shape[-2] == 1:  # decoding: transpose the one query, not all keys
        return jnp.swapaxes(jnp.matmul(k, jnp.swapaxes(q, -1, -2), preferred_element_type=kind), -1, -2)
    return jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=kind)


@products.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (q, k), (dq, dk) = primals, tangents
    change = _products(dq, unmarked(k), q.dtype) + _products(unmarked(q), dk, q.dtype)
    return _products(q, k, wide(q)), change.astype(wide(q))


def weighted_values(
    scores: Float[Array, "*B L S"], values: Float[Array, "*B S M"], mask: Bool[Array, "*#B L S"] | None
) -> Float[Array, "*B L M"]:
    """softmax(scores) · V over the visible keys (all without a mask), normalised after the product: exp(s - max) · V /
    sum exp(s - max). The softmax is in float32. A query that sees no key gives zeros with zero gradients, and one that
    sees a score of NaN gives NaN with zero gradients."""
    scores = scores if mask is None else jnp.where(mask, scores, HIDDEN)
    peak = lax.stop_gradient(jnp.maximum(scores.max(axis=-1, keepdims=True), LOWEST))
    # Not every maximum of XLA's CPU compiler is NaN where one of many scores is.
    lost = ~jnp.isfinite(peak) | jnp.isnan(scores).any(axis=-1, keepdims=True)
    weights = jnp.exp(jnp.where(lost, HIDDEN, scores) - jnp.where(lost, 0, peak))
    total = weights.sum(axis=-1, keepdims=True)
    summed = product(weights.astype(values.dtype), values)
    return jnp.where(lost, jnp.nan, summed / jnp.where(total == 0, 1, total)).astype(values.dtype)


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
    scores, mask = products(q, k), where.mask()
    mask = None if mask is None else mask[:, None, None]
    if score is not None:
        # The function, and its derivative, see neither what a hidden key gives nor what is not finite.
        finite = jnp.isfinite(scores)
        seen = jnp.where(finite if mask is None else finite & mask, scores, 0)
        of_heads = seen.reshape(batch, heads, *scores.shape[3:])
        changed = score(of_heads, where.q_positions, where.k_positions).reshape(scores.shape)
        scores = jnp.where(finite, changed, scores)
    out = weighted_values(scores, v, mask)
    return jnp.moveaxis(out.reshape(batch, heads, length, -1), 1, 2)
