"""Attention by tiles, with the weights recomputed in the backward pass: O(L + S) memory.

The softmax is computed online (Milakov & Gimelshein 2018; Rabe & Staats 2021): a tile of queries visits the slabs of
keys in order and carries the maximum score m, the sum l of the weights and their product a with the values,

    m' = max(m, max s),  l' = l e^(m - m') + Σ e^(s - m'),  a' = a e^(m - m') + e^(s - m') V

and its output is a / l. The backward pass keeps only the output and logsumexp = m + log l of each query (Dao et al.
2022, "FlashAttention", appendix B): P = e^(s - logsumexp), dV = P^T dO, dS = P ∘ (dO V^T - rowsum(dO ∘ O)), dQ = dS K,
dK = dS^T Q.

A slab that is invisible to the whole tile is skipped, and one that is fully visible needs no mask. Both follow from
positions and segments, so any positions are correct, and consecutive ones are fast.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer.model import masks
from transformer.model.attention.marks import unmarked
from transformer.model.attention.scores import HIDDEN, LOWEST, Score
from transformer.model.products import wide

NOBODY = np.iinfo(np.int32).min  # the segment of padding queries


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tile i of queries visits the slabs of keys that begin at `i * shift + j * slab`, j = 0 ... slabs - 1."""

    block: int  # queries per tile
    slab: int  # keys per slab
    slabs: int  # per tile
    shift: int  # keys from the first slab of a tile to that of the next
    before: int  # padding keys before the first key
    limits: masks.Band


def tile_length(length: int, largest: int) -> int:
    """The shortest tile that covers `length` with the fewest tiles of at most `largest`; a multiple of 16 if there are
    several."""
    count = -(-length // largest)
    return length if count == 1 else min(largest, -(-length // (16 * count)) * 16)


class Slab(NamedTuple):
    """The keys and values that a tile of queries visits in one step."""

    k: Float[Array, "B G slab K"]
    v: Float[Array, "B G slab M"]
    positions: Int[Array, "#B slab"]
    segments: Int[Array, "#B slab"]


def _kinds(tiling: Tiling, tiles: int, ids: Any) -> Int[Array, "T slabs"]:
    """0 where no query of a tile sees a key of a slab, 1 where each sees all, 2 otherwise; from minima and maxima."""
    q_positions, k_positions, q_segments, k_segments = ids
    places = np.arange(tiles if tiling.shift else 1)  # without a shift, all tiles have the same slabs
    starts = places[:, None] * tiling.shift + np.arange(tiling.slabs) * tiling.slab

    def of_slabs(x: Array, bound: Any) -> Array:  # [T or 1, slabs, #B]
        cut = lambda start: bound(lax.dynamic_slice_in_dim(x, start, tiling.slab, 1), axis=1)  # noqa: E731
        return jax.vmap(jax.vmap(cut))(starts)

    def of_tiles(x: Array, bound: Any) -> Array:  # [T, 1, #B]
        return bound(x, axis=-1)[:, None]

    low = of_slabs(k_positions, jnp.min) - of_tiles(q_positions, jnp.max)
    high = of_slabs(k_positions, jnp.max) - of_tiles(q_positions, jnp.min)
    segments = [
        of(x, bound) for of, x in ((of_tiles, q_segments), (of_slabs, k_segments)) for bound in (jnp.min, jnp.max)
    ]
    q_low, q_high, k_low, k_high = segments
    some = (q_low <= k_high) & (k_low <= q_high)
    every = (q_low == k_high) & (k_low == q_high)
    left, right = tiling.limits
    if left is not None:
        some, every = some & (high >= -left), every & (low >= -left)
    if right is not None:
        some, every = some & (low <= right), every & (high <= right)
    return jnp.where(every.all(axis=-1), 1, jnp.where(some.any(axis=-1), 2, 0))


def _matmul(x: Float[Array, "B G m n"], y: Float[Array, "B G n k"]) -> Float[Array, "B G m k"]:
    return jnp.matmul(x, y, preferred_element_type=wide(x))


def _matmul_t(x: Float[Array, "B G m k"], y: Float[Array, "B G n k"]) -> Float[Array, "B G m n"]:
    return jnp.matmul(x, jnp.swapaxes(y, -1, -2), preferred_element_type=wide(x))


def _cut(tiling: Tiling, keys: Slab, tile: Array, j: Array | int) -> tuple[Array, Slab]:
    start = tile * tiling.shift + j * tiling.slab
    cut = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=tiling.slab)
    return start, Slab(
        cut(keys.k, axis=2), cut(keys.v, axis=2), cut(keys.positions, axis=1), cut(keys.segments, axis=1)
    )


def _scored(
    tiling: Tiling, score: Any, weights: Any, scores: Float[Array, "B G rows slab"], q_positions: Array, slab: Slab
) -> Float[Array, "B G rows slab"]:
    of_heads = scores.reshape(scores.shape[0], -1, tiling.block, tiling.slab)
    return score(of_heads, q_positions, slab.positions, *weights).reshape(scores.shape).astype(scores.dtype)


def _mask(
    tiling: Tiling, q_positions: Array, q_segments: Array, slab: Slab, repeats: int
) -> Bool[Array, "#B 1 rows S"]:
    mask = masks.visible(q_positions, slab.positions, q_segments, slab.segments, tiling.limits)
    return jnp.tile(mask, (1, repeats, 1))[:, None]  # the rows of a group's heads follow each other


def _where(mask: Array | None, x: Array, other: float) -> Array:
    return x if mask is None else jnp.where(mask, x, other)


def _transpose(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _by_kind(kind: Int[Array, ""], update: Callable[[bool, Any], Any], state: Any) -> Any:
    return lax.switch(kind, (lambda s: s, partial(update, False), partial(update, True)), state)


def _over_slabs(tiling: Tiling, body: Any, state: Any) -> Any:
    return body(0, state) if tiling.slabs == 1 else lax.fori_loop(0, tiling.slabs, body, state)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def tiled(
    tiling: Tiling,
    score: Any,
    q: Float[Array, "T B G rows K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S M"],
    weights: Any,
    ids: Any,
) -> Float[Array, "T B G rows M"]:
    """Attention of tiles of scaled queries over padded keys; `rows` = the heads of a group times the tile's queries.
    `ids` are the positions of queries [T, #B, block] and of keys [#B, S], then their segments; padding has its own
    segments. `score(scores [B, H, block, slab], q_positions, k_positions, *weights)` changes the scores, or is None;
    `weights` are the arrays that get its gradient."""
    return _forward(tiling, score, q, k, v, weights, ids)[0]


def _forward(tiling: Tiling, score: Any, q: Array, k: Array, v: Array, weights: Any, ids: Any) -> tuple[Array, Any]:
    q_positions, k_positions, q_segments, k_segments = ids
    tiles, batch, groups, rows, _ = q.shape
    keys = Slab(k, v, k_positions, k_segments)
    kinds = _kinds(tiling, tiles, ids)

    def one_tile(_: None, x: Any) -> tuple[None, Any]:
        i, q, q_positions, q_segments, kind = x

        def one_slab(j: Any, state: Any) -> Any:
            _, slab = _cut(tiling, keys, i, j)

            def update(masked: bool, state: Any) -> Any:
                peak, total, summed = state
                scores = _matmul_t(q, slab.k)
                mask = _mask(tiling, q_positions, q_segments, slab, rows // tiling.block) if masked else None
                if score is not None:
                    scores = _where(mask, scores, 0.0)  # whatever a hidden key gives
                    scores = _scored(tiling, score, weights, scores, q_positions, slab)
                scores = _where(mask, scores, HIDDEN)
                higher = jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
                p, shrink = jnp.exp(scores - higher), jnp.exp(peak - higher)
                total = total * shrink + p.sum(axis=-1, keepdims=True)
                return higher, total, summed * shrink + _matmul(p.astype(slab.v.dtype), slab.v)

            return _by_kind(kind[j], update, state)

        state = (
            jnp.full((batch, groups, rows, 1), LOWEST, wide(q)),
            jnp.zeros((batch, groups, rows, 1), wide(q)),
            jnp.zeros((batch, groups, rows, v.shape[-1]), wide(v)),
        )
        peak, total, summed = _over_slabs(tiling, one_slab, state)
        total = jnp.where(total == 0, 1, total)
        return None, ((summed / total).astype(v.dtype), peak + jnp.log(total))

    _, (out, logsumexp) = lax.scan(one_tile, None, (jnp.arange(tiles), q, q_positions, q_segments, kinds))
    return out, (q, k, v, weights, ids, out, logsumexp, kinds)


def _backward(tiling: Tiling, score: Any, kept: Any, d_out: Array) -> tuple[Any, ...]:
    q, k, v, weights, ids, out, logsumexp, kinds = kept
    q_positions, k_positions, q_segments, k_segments = ids
    tiles, batch, groups, rows, width = q.shape
    # A query that saw NaN has no part in the gradients: its weights become 0.
    lost = ~jnp.isfinite(logsumexp)
    d_out, out = jnp.where(lost, 0, d_out), jnp.where(lost, 0, out)
    q, k, logsumexp = jnp.where(lost, 0, unmarked(q)), unmarked(k), jnp.where(lost, -HIDDEN, logsumexp)
    keys = Slab(k, v, k_positions, k_segments)

    def one_tile(totals: Any, x: Any) -> tuple[Any, Any]:
        i, q, q_positions, q_segments, kind, d_out, out, logsumexp = x
        # Scores are [keys, queries], so that the products for dV, dK and dQ need no transposed copy of them.
        logsumexp = logsumexp[..., 0][:, :, None]
        delta = (d_out.astype(wide(q)) * out.astype(wide(q))).sum(axis=-1)[:, :, None]

        def one_slab(j: Any, state: Any) -> Any:
            dq, (dk, dv, d_weights) = state
            start, slab = _cut(tiling, keys, i, j)

            def update(masked: bool, state: Any) -> Any:
                dq, dk, dv, d_weights = state
                scores = _matmul_t(slab.k, q)
                mask = None
                if masked:
                    mask = _transpose(_mask(tiling, q_positions, q_segments, slab, rows // tiling.block))
                if score is not None:
                    change = lambda scores, weights: _transpose(  # noqa: E731
                        _scored(tiling, score, weights, _transpose(scores), q_positions, slab)
                    )
                    scores, pull = jax.vjp(change, _where(mask, scores, 0.0), weights)
                # At most 1: scores so large that their sum rounds by more give no infinity.
                p = jnp.exp(jnp.minimum(_where(mask, scores, HIDDEN) - logsumexp, 0))
                # What is hidden may be so large that its part here is infinite.
                d_scores = _where(mask, p * (_matmul_t(slab.v, d_out) - delta), 0.0)
                if score is not None:
                    d_scores, more = pull(d_scores)
                    d_weights = jax.tree.map(jnp.add, d_weights, more)
                d_scores = d_scores.astype(q.dtype)
                return (
                    dq + _matmul(_transpose(slab.k), d_scores),  # [K, rows]: transposed
                    dk + _matmul(d_scores, q),
                    dv + _matmul(p.astype(d_out.dtype), d_out),
                    d_weights,
                )

            at = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=tiling.slab, axis=2)
            put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=2)
            state = (dq, at(dk), at(dv), d_weights)
            dq, dk_slab, dv_slab, d_weights = _by_kind(kind[j], update, state)
            return dq, (put(dk, dk_slab), put(dv, dv_slab), d_weights)

        dq, totals = _over_slabs(tiling, one_slab, (jnp.zeros((batch, groups, width, rows), wide(q)), totals))
        return totals, _transpose(dq).astype(q.dtype)

    totals = (jnp.zeros(k.shape, wide(k)), jnp.zeros(v.shape, wide(v)), jax.tree.map(jnp.zeros_like, weights))
    xs = (jnp.arange(tiles), q, q_positions, q_segments, kinds, d_out, out, logsumexp)
    (dk, dv, d_weights), dq = lax.scan(one_tile, totals, xs)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), d_weights, None


tiled.defvjp(_forward, _backward)


def attend_tiles(
    tiling: Tiling,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    score: Score | None,
    where: masks.Visibility,
    scale: float,
) -> Float[Array, "B L H M"]:
    """Pads, splits the queries into tiles, and joins the outputs."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    repeats, block, tiles = heads // groups, tiling.block, -(-length // tiling.block)
    end = (tiles - 1) * tiling.shift + tiling.slabs * tiling.slab - tiling.before - k.shape[1]

    def pad_queries(x: Array, value: int = 0) -> Array:
        widths = [(0, 0), (0, tiles * block - length)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, widths, constant_values=value)
        return jnp.moveaxis(x.reshape(x.shape[0], tiles, block, *x.shape[2:]), 1, 0)

    def pad_keys(x: Array, value: int = 0) -> Array:
        return jnp.pad(x, [(0, 0), (tiling.before, end)] + [(0, 0)] * (x.ndim - 2), constant_values=value)

    q_segments = jnp.zeros_like(where.q_positions) if where.q_segments is None else where.q_segments
    k_segments = jnp.zeros_like(where.k_positions) if where.k_segments is None else where.k_segments
    # Padding queries and padding keys have different segments, so that nothing sees them.
    ids = (
        pad_queries(where.q_positions),
        pad_keys(where.k_positions),
        pad_queries(q_segments, NOBODY),
        pad_keys(k_segments, NOBODY + 1),
    )
    cut = pad_queries(q * scale).reshape(tiles, batch, block, groups, repeats, width)
    cut = jnp.transpose(cut, (0, 1, 3, 4, 2, 5)).reshape(tiles, batch, groups, repeats * block, width)
    k, v = (jnp.moveaxis(pad_keys(x), 2, 1) for x in (k, v))
    weights: list[Array] = []
    if score is not None:
        # Captured arrays become arguments, so that gradients reach them.
        tile = jnp.zeros((batch, heads, block, tiling.slab), wide(q))
        score, weights = jax.closure_convert(partial(score), tile, ids[0][0], ids[1][:, : tiling.slab])
    out = tiled(tiling, score, cut, k, v, tuple(weights), ids)
    out = out.reshape(tiles, batch, groups, repeats, block, -1)
    return jnp.transpose(out, (1, 0, 4, 2, 3, 5)).reshape(batch, tiles * block, heads, -1)[:, :length]
