"""NaN and infinity in keys and values: they reach the queries that see them, and no others.

A weight of 0 does not hide a value that is NaN, because 0 · NaN is NaN. So what is not finite is moved to where the
mask hides it, into the scores: a marked key is NaN, and its value is 0. A query that sees a marked key gets NaN as its
output, and its row has no part in the gradients. A query that does not see it has the values and gradients that it has
with any other key there.

So the gradients of a marked key, of its value and of a marked query are 0 in every backend, and marking need not
multiply by 0: its derivative is the identity.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def put(keep: Bool[Array, "*#shape"], x: Float[Array, "*shape"], other: float) -> Float[Array, "*shape"]:
    """x, or `other` where it is not kept; the derivative is the identity."""
    return jnp.where(keep, x, other)


@put.defjvp
def _(other: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    return put(*primals, other), tangents[1]


def marked(
    k: Float[Array, "*B S G K"], v: Float[Array, "*B S G M"]
) -> tuple[Float[Array, "*B S G K"], Float[Array, "*B S G M"]]:
    """Keys and values, where a key is NaN and its value 0 if either is not finite."""
    finite = (jnp.isfinite(k).all(axis=-1) & jnp.isfinite(v).all(axis=-1))[..., None]
    return put(finite, k, jnp.nan), put(finite, v, 0.0)


def marked_queries(q: Float[Array, "*B L H K"]) -> Float[Array, "*B L H K"]:
    """Queries, where one that is not finite is NaN."""
    return put(jnp.isfinite(q).all(axis=-1, keepdims=True), q, jnp.nan)


def unmarked(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Marked queries or keys with 0 instead of NaN, for products with the gradients of scores, which are 0 there."""
    return put(~jnp.isnan(x), x, 0.0)
