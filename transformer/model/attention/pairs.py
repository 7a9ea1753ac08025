"""Attention of strips of queries to blocks of keys, pair by pair, forward and backward: what `strips` and `windows` do
with the rows that they cut.

Scores are [keys, queries], so that the sums of the softmax are over the first of the two axes: XLA adds whole vectors.
The division by the sum comes after the product with the values. Strips and blocks are arrays of their own, cut where
heads come before positions anyway, so that no product needs a copy. The backward pass is written out, because JAX's own
would transpose all scores.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer.model.attention.scores import HIDDEN, LOWEST
from transformer.model.products import wide

# (strip, block, x [B, H, keys, queries], other) -> x with the other value where a query of the strip does not see a key
Hide = Callable[[int, int, Array, float], Array]


class Kept(NamedTuple):
    """What the backward pass needs of a strip besides its arguments and output: weights are exp(score - shift), divided
    by the total."""

    weights: list[Array] | None  # [B, H, keys, queries] of each block that is seen; None: they are computed again
    shift: Float[Array, "B H 1 l"]
    total: Float[Array, "B H 1 l"]
    lost: Bool[Array, "B H 1 l"]  # a visible score is not finite

    def of_logsumexp(self) -> "Kept":
        """The same in one number for each query and head."""
        return Kept(None, self.shift + jnp.log(self.total), jnp.ones_like(self.total), self.lost)


def attend_strip(
    i: int,
    q: Float[Array, "B l H K"],
    keys: Sequence[Array],
    values: Sequence[Array],
    seen: Sequence[int],
    hide: Hide,
) -> tuple[Float[Array, "B l H M"], Kept]:
    """The output of strip `i`, scaled queries, that sees part of the blocks `seen` of keys, as `by_heads` gives them,
    and of values, as `turned` gives them. It is NaN where a visible score is not finite."""
    scores = _scores(i, q, keys, seen, hide)
    peak = jnp.maximum(reduce(jnp.maximum, [x.max(axis=2, keepdims=True) for x in scores]), LOWEST)
    lost = ~jnp.isfinite(peak)  # a score of a visible key that is too large: NaN, with gradients of 0
    shift = jnp.where(lost, 0, peak)
    weights = [jnp.exp(jnp.where(lost, HIDDEN, x) - shift) for x in scores]
    total = sum(x.sum(axis=2, keepdims=True) for x in weights)
    total = jnp.where(total == 0, 1, total)
    weights = [x.astype(values[0].dtype) for x in weights]
    summed = sum(products("bhms,bhsl->bhml", values[j], x) for j, x in zip(seen, weights, strict=True))
    out = jnp.where(lost, jnp.nan, summed / total).astype(values[0].dtype)
    return jnp.transpose(out, (0, 3, 1, 2)), Kept(weights, shift, total, lost)


def gradients(
    q: Sequence[Float[Array, "B _ H K"]],
    k: Sequence[Float[Array, "B _ H K"]],
    v: Sequence[Float[Array, "B _ H M"]],
    seen: Sequence[Sequence[int]],
    hide: Hide,
    kept: Sequence[Kept],
    d_out: Sequence[Float[Array, "B _ H M"]],
) -> tuple[list[Array], list[Array], list[Array]]:
    """Those of scaled queries, keys and values, strip by strip and block by block, at least in float32. With P the
    weights and dP = dO V^T, dS = P ∘ dP - P ∘ rowsum(P ∘ dP), so that the output is not needed."""
    keys, turned_keys, values = ([of(x) for x in given] for of, given in ((by_heads, k), (turned, k), (by_heads, v)))
    of_q, of_k, of_v = [], [zero := jnp.zeros((), wide(k[0]))] * len(k), [zero] * len(v)
    for i, (strip, one) in enumerate(zip(q, kept, strict=True)):
        weights, total, lost = one.weights, one.total, one.lost
        if weights is None:
            scores = [jnp.where(lost, HIDDEN, x) - one.shift for x in _scores(i, strip, keys, seen[i], hide)]
            weights = [jnp.exp(jnp.minimum(x, 0)).astype(v[0].dtype) for x in scores]
        given = jnp.where(jnp.swapaxes(lost, 2, 3), 0, by_heads(d_out[i]) / jnp.swapaxes(total, 2, 3))
        given, queries, changed = given.astype(v[0].dtype), by_heads(strip), []
        # 0 times what a hidden value gives can be NaN
        weighted = [
            hide(i, j, weight * products("bhsm,bhlm->bhsl", values[j], given), 0.0)
            for j, weight in zip(seen[i], weights, strict=True)
        ]
        # Weights are not divided by the total, and what is given is.
        own = sum(x.sum(axis=2, keepdims=True) for x in weighted) / total
        for j, weight, x in zip(seen[i], weights, weighted, strict=True):
            of_scores = (x - weight * own).astype(strip.dtype)
            changed.append(products("bhks,bhsl->bhkl", turned_keys[j], of_scores))
            of_k[j] += products("bhsl,bhlk->bhsk", of_scores, queries)
            of_v[j] += products("bhsl,bhlm->bhsm", weight, given)
        of_q.append(jnp.transpose(sum(changed), (0, 3, 1, 2)))
    return of_q, [by_heads(x) for x in of_k], [by_heads(x) for x in of_v]


def _scores(i: int, q: Array, keys: Sequence[Array], seen: Sequence[int], hide: Hide) -> list[Array]:
    queries = by_heads(q)
    return [hide(i, j, products("bhsk,bhlk->bhsl", keys[j], queries), HIDDEN) for j in seen]


def by_heads(x: Array) -> Array:
    """[B, L, H, K] as [B, H, L, K], and back."""
    return jnp.swapaxes(x, 1, 2)


def turned(x: Array) -> Array:
    """[B, S, H, K] as [B, H, K, S]."""
    return jnp.transpose(x, (0, 2, 3, 1))


def products(subscripts: str, x: Array, y: Array) -> Any:
    """An einsum, at least in float32."""
    return jnp.einsum(subscripts, x, y, preferred_element_type=wide(x))
