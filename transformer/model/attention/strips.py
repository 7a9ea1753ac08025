"""Attention of short rows on processors: strips of queries, one after another, each with the keys that it can see.

    keys     . . . . . . . .           the scores of a strip are [keys, queries], so that the sums of its
    strip 0  [q q]k                    softmax are over the first of the two axes: XLA adds whole vectors.
    strip 1      [q q]k                It divides by the sum after the product with the values.

A strip's products are large enough for all cores, and its scores stay in their caches. Strips are unrolled and their
weights kept for the backward pass, so rows are short; longer ones go to `blockwise` and `banded`. The backward pass is
written out, because JAX's own would transpose all scores.
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.marks import unmarked
from transformer.model.attention.scores import HIDDEN, LOWEST, Score
from transformer.model.attention.spoilt import spoilt
from transformer.model.products import wide
from transformer.platforms import tuned


def strips(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    where: masks.Visibility,
    consecutive: bool,
    score: Score | None,
    scale: float,
    finite: bool = False,
) -> Float[Array, "B L H M"]:
    """`dense` by strips. What is marked is 0 in the products, unless all is known to be `finite`, and the queries that
    see it are NaN. ValueError: a score function, which takes scores in another order."""
    if score is not None:
        raise ValueError("backend='strips' takes no score function: use backend='dense'")
    _, length, heads, _ = q.shape
    cut = Cut.of(length, k.shape[1], where.limits, consecutive)
    wrong = None
    if not finite:
        sees, of_groups = spoilt(where, jnp.isnan(k[..., 0]), consecutive)
        wrong = jnp.repeat(of_groups, heads // k.shape[2], axis=2) | jnp.isnan(q[..., 0])
        wrong = wrong if sees is None else wrong & sees[..., None]
        q, k = unmarked(q), unmarked(k)
    k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) if x.shape[2] < heads else x for x in (k, v))
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q * scale, k, v))
    ids = where.with_ids()
    of_ids = (ids.q_positions, ids.k_positions, ids.q_segments, ids.k_segments)
    out = jnp.moveaxis(_strips(cut, q, k, v, of_ids), 1, 2)
    return out if wrong is None else jnp.where(wrong[..., None], jnp.nan, out)


Ids = tuple[Array, Array, Array | None, Array | None]  # as in `masks.Visibility`


class Cut(NamedTuple):
    """How rows are cut into strips."""

    limits: masks.Band
    by_index: bool  # what a query sees follows from indices
    strip: int  # queries

    @classmethod
    def of(cls, length: int, keys: int, limits: masks.Band, consecutive: bool) -> "Cut":
        return cls(limits, consecutive and length == keys, tuned().strip or length)

    def spans(self, length: int, keys: int) -> list[tuple[slice, slice]]:
        """The queries of each strip, and the keys that they can see."""
        count, (left, right) = max(1, length // self.strip), self.limits
        ends = [length * i // count for i in range(count + 1)]
        begin = lambda first: max(0, first - left) if self.by_index and left is not None else 0  # noqa: E731
        end = lambda last: min(keys, last + right) if self.by_index and right is not None else keys  # noqa: E731
        return [(slice(a, b), slice(begin(a), end(b))) for a, b in itertools.pairwise(ends)]

    def scores(self, length: int, keys: int) -> int:
        """How many scores of one head are computed."""
        return sum((q.stop - q.start) * (k.stop - k.start) for q, k in self.spans(length, keys))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _strips(cut: Cut, q: Array, k: Array, v: Array, ids: Ids) -> Array:
    """[B, H, L, M] of scaled queries [B, H, L, K], keys [B, H, S, K] and values [B, H, S, M]; `ids` are positions
    and segments."""
    return _forward(cut, q, k, v, ids)[0]


def _forward(cut: Cut, q: Array, k: Array, v: Array, ids: Ids) -> tuple[Array, Any]:
    outputs, kept = [], []
    for queries, keys in cut.spans(q.shape[2], k.shape[2]):
        scores = _products("bhsk,bhlk->bhsl", k[:, :, keys], q[:, :, queries])
        seen = _seen(cut, ids, queries, keys)
        scores = scores if seen is None else jnp.where(seen, scores, HIDDEN)
        peak = jnp.maximum(scores.max(axis=2, keepdims=True), LOWEST)
        lost = ~jnp.isfinite(peak)  # a score of a visible key that is too large: NaN, with gradients of 0
        weights = jnp.exp(jnp.where(lost, HIDDEN, scores) - jnp.where(lost, 0, peak))
        total = weights.sum(axis=2)[..., None]  # [B, H, L, 1]
        total = jnp.where(total == 0, 1, total)
        weights = weights.astype(v.dtype)
        outputs.append((_products("bhsl,bhsm->bhlm", weights, v[:, :, keys]) / total).astype(v.dtype))
        kept.append((weights, total, lost))
    out = jnp.concatenate(outputs, axis=2)
    all_lost = jnp.concatenate([jnp.swapaxes(lost, 2, 3) for _, _, lost in kept], axis=2)
    return jnp.where(all_lost, jnp.nan, out), (q, k, v, ids, out, kept)


def _backward(cut: Cut, residuals: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, out, kept = residuals
    of_q, of_k, of_v = [], jnp.zeros(k.shape, wide(k)), jnp.zeros(v.shape, wide(v))
    for (queries, keys), (weights, total, lost) in zip(cut.spans(q.shape[2], k.shape[2]), kept, strict=True):
        given = jnp.where(jnp.swapaxes(lost, 2, 3), 0, d_out[:, :, queries] / total).astype(v.dtype)
        own = (given.astype(wide(v)) * out[:, :, queries]).sum(axis=-1)[:, :, None]  # [B, H, 1, L]
        of_scores = weights * (_products("bhsm,bhlm->bhsl", v[:, :, keys], given) - own)
        seen = _seen(cut, ids, queries, keys)  # 0 times what a hidden value gives can be NaN
        of_scores = (of_scores if seen is None else jnp.where(seen, of_scores, 0)).astype(q.dtype)
        of_q.append(_products("bhsl,bhsk->bhlk", of_scores, k[:, :, keys]))
        of_k = of_k.at[:, :, keys].add(_products("bhsl,bhlk->bhsk", of_scores, q[:, :, queries]))
        of_v = of_v.at[:, :, keys].add(_products("bhsl,bhlm->bhsm", weights, given))
    return jnp.concatenate(of_q, axis=2).astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), None


_strips.defvjp(_forward, _backward)


def _products(subscripts: str, x: Array, y: Array) -> Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=wide(x))


def _seen(cut: Cut, ids: Ids, queries: slice, keys: slice) -> Array | None:
    """[#B, 1, keys, queries] of a strip, or None where all is seen."""
    q_positions, k_positions, q_segments, k_segments = ids
    if cut.limits == (None, None) and q_segments is None:
        return None
    q_in, k_in = (None if x is None else x[:, part] for x, part in ((q_segments, queries), (k_segments, keys)))
    mask = masks.visible(q_positions[:, queries], k_positions[:, keys], q_in, k_in, cut.limits)
    return jnp.swapaxes(mask, -1, -2)[:, None]
