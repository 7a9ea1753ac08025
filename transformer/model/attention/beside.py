"""Tiles side by side, for accelerators: the scores of many tiles of queries are one batched product, as many as
`Platform.side_by_side` allows. If that is not all, a loop goes over chunks of tiles. There are no branches, and no
gathers or scatters: the keys that a window's tile sees are the blocks of keys around it,

    block of keys   0 1 2 3 4
    tile 2          . x x . .        ahead = 1 block before the tile's own, after = 0
    tile 3          . . x x .

so that the keys of all tiles are shifted slices of the blocks, and their gradients shifted sums. Full attention has one
block, of all keys. As in `transformer.model.attention.tiles`, the backward pass computes the weights again."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer.model import masks
from transformer.model.attention.kernels import block
from transformer.model.attention.marks import unmarked
from transformer.model.attention.scores import HIDDEN, LOWEST, Score
from transformer.model.attention.tiles import NOBODY
from transformer.model.products import wide
from transformer.platforms import device_rows, tuned


@dataclasses.dataclass(frozen=True)
class Plan:
    """Chunks of tiles of queries, and the blocks of keys that each tile sees."""

    side: int  # queries of a tile
    tiles: int  # of a chunk
    chunks: int
    keys: int  # of a block
    ahead: int  # blocks before a tile's own
    after: int  # blocks after it
    all_keys: bool  # there is one block, which every tile sees
    limits: masks.Band

    @property
    def blocks(self) -> int:
        """Blocks of keys, those of padding included."""
        return 1 if self.all_keys else self.ahead + self.chunks * self.tiles + self.after


class Blocks(NamedTuple):
    """Keys and values by blocks."""

    k: Float[Array, "Z B G keys K"]
    v: Float[Array, "Z B G keys M"]
    positions: Int[Array, " blocks rows keys"]
    segments: Int[Array, " blocks rows keys"]


def plan_of(rows: int, heads: int, length: int, keys: int, limits: masks.Band, by_index: bool) -> Plan:
    """The fewest chunks that keep to `Platform.side_by_side`; `rows` are per device. `by_index`: a window, by the index
    of queries and keys."""
    budget, a_row = tuned().side_by_side, rows * heads * 4
    if not by_index:
        chunks = min(length, -(-a_row * length * keys // budget))
        return Plan(-(-length // chunks), 1, chunks, keys, 0, 0, True, limits)
    side = block(length, limits)
    left, right = (length - 1 if limit is None else min(limit, length - 1) for limit in limits)
    ahead, after = -(-left // side), -(-right // side)
    tiles = -(-length // side)
    chunks = min(tiles, -(-a_row * tiles * side * side * (ahead + 1 + after) // budget))
    return Plan(side, -(-tiles // chunks), chunks, side, ahead, after, False, limits)


def _seen(plan: Plan, chunk: Array | int, blocks: Blocks) -> Blocks:
    """The keys that each tile of a chunk sees: for [Z, ..., keys, K], [tiles, ..., blocks · keys, K]."""
    if plan.all_keys:
        return blocks
    wide_of = plan.ahead + 1 + plan.after

    def windows(x: Array, axis: int) -> Array:
        near = lax.dynamic_slice_in_dim(x, chunk * plan.tiles, plan.tiles + wide_of - 1)
        return jnp.concatenate([near[i : i + plan.tiles] for i in range(wide_of)], axis=axis)

    return Blocks(*(windows(x, axis) for x, axis in zip(blocks, (3, 3, 2, 2), strict=True)))


def _put(plan: Plan, chunk: Array | int, total: Array, more: Array) -> Array:
    """The transpose of `_seen`, added to `total`."""
    if plan.all_keys:
        return total + more
    wide_of = plan.ahead + 1 + plan.after
    size, start = plan.tiles + wide_of - 1, chunk * plan.tiles
    near = lax.dynamic_slice_in_dim(total, start, size)
    for i, part in enumerate(jnp.split(more, wide_of, axis=3)):
        near += jnp.pad(part, [(i, wide_of - 1 - i)] + [(0, 0)] * (part.ndim - 1))
    return lax.dynamic_update_slice_in_dim(total, near, start, 0)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=wide(x))


def _turned(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _mask(
    plan: Plan, q_positions: Array, q_segments: Array, seen: Blocks, rows: int
) -> Bool[Array, " tiles rows 1 q S"]:
    mask = masks.visible(q_positions, seen.positions, q_segments, seen.segments, plan.limits)
    return jnp.tile(mask, (1, 1, rows // plan.side, 1))[:, :, None]  # the rows of a group's heads follow each other


def _scored(plan: Plan, score: Any, weights: Any, scores: Array, q_positions: Array, k_positions: Array) -> Array:
    """The scores [tiles, B, G, rows, S] changed, tile by tile."""
    of_heads = scores.reshape(*scores.shape[:2], -1, plan.side, scores.shape[-1])
    change = jax.vmap(lambda x, q_at, k_at: score(x, q_at, k_at, *weights))
    return change(of_heads, q_positions, k_positions).reshape(scores.shape).astype(scores.dtype)


def _each(plan: Plan, one: Any, state: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan` over chunks; one chunk needs no loop."""
    xs = (jnp.arange(plan.chunks), *xs)
    if plan.chunks > 1:
        return lax.scan(one, state, xs)
    state, out = one(state, (0, *(x[0] for x in xs[1:])))
    return state, jax.tree.map(lambda x: x[None], out)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def beside(
    plan: Plan,
    score: Any,
    q: Float[Array, "chunks tiles B G rows K"],
    k: Float[Array, "Z B G keys K"],
    v: Float[Array, "Z B G keys M"],
    weights: Any,
    ids: Any,
) -> Float[Array, "chunks tiles B G rows M"]:
    """Attention of tiles of scaled queries; `rows` = the heads of a group times the tile's queries. `ids` are positions
    of queries [chunks, tiles, #B, side] and of keys [Z, #B, keys], then their segments. `score` and `weights` are those
    of `transformer.model.attention.tiles.tiled`."""
    return _forward(plan, score, q, k, v, weights, ids)[0]


def _forward(plan: Plan, score: Any, q: Array, k: Array, v: Array, weights: Any, ids: Any) -> tuple[Array, Any]:
    q_positions, k_positions, q_segments, k_segments = ids
    blocks = Blocks(k, v, k_positions, k_segments)

    def one(_: None, x: Any) -> tuple[None, Any]:
        chunk, q, q_positions, q_segments = x
        seen = _seen(plan, chunk, blocks)
        scores, mask = _product(q, _turned(seen.k)), _mask(plan, q_positions, q_segments, seen, q.shape[-2])
        if score is not None:
            scores = jnp.where(mask, scores, 0.0)  # whatever a hidden key gives
            scores = _scored(plan, score, weights, scores, q_positions, seen.positions)
        scores = jnp.where(mask, scores, HIDDEN)
        peak = jnp.maximum(scores.max(axis=-1, keepdims=True), LOWEST)
        p = jnp.exp(scores - peak)
        total = p.sum(axis=-1, keepdims=True)
        total = jnp.where(total == 0, 1, total)
        return None, ((_product(p.astype(v.dtype), seen.v) / total).astype(v.dtype), peak + jnp.log(total))

    _, (out, logsumexp) = _each(plan, one, None, (q, q_positions, q_segments))
    return out, (q, k, v, weights, ids, out, logsumexp)


def _backward(plan: Plan, score: Any, kept: Any, d_out: Array) -> tuple[Any, ...]:
    q, k, v, weights, ids, out, logsumexp = kept
    q_positions, k_positions, q_segments, k_segments = ids
    # A query that saw NaN has no part in the gradients: its weights become 0.
    lost = ~jnp.isfinite(logsumexp)
    d_out, out = jnp.where(lost, 0, d_out), jnp.where(lost, 0, out)
    q, k, logsumexp = jnp.where(lost, 0, unmarked(q)), unmarked(k), jnp.where(lost, -HIDDEN, logsumexp)
    blocks = Blocks(k, v, k_positions, k_segments)
    delta = (d_out.astype(wide(q)) * out.astype(wide(q))).sum(axis=-1, keepdims=True)

    def one(totals: Any, x: Any) -> tuple[Any, Any]:
        dk, dv, d_weights = totals
        chunk, q, q_positions, q_segments, d_out, delta, logsumexp = x
        seen = _seen(plan, chunk, blocks)
        scores, mask = _product(q, _turned(seen.k)), _mask(plan, q_positions, q_segments, seen, q.shape[-2])
        if score is not None:
            change = lambda scores, weights: _scored(plan, score, weights, scores, q_positions, seen.positions)  # noqa: E731
            scores, pull = jax.vjp(change, jnp.where(mask, scores, 0.0), weights)
        # At most 1: scores so large that their sum rounds by more give no infinity.
        p = jnp.exp(jnp.minimum(jnp.where(mask, scores, HIDDEN) - logsumexp, 0))
        # What is hidden may be so large that its part here is infinite.
        d_scores = jnp.where(mask, p * (_product(d_out, _turned(seen.v)) - delta), 0.0)
        if score is not None:
            d_scores, more = pull(d_scores)
            d_weights = jax.tree.map(jnp.add, d_weights, more)
        d_scores = d_scores.astype(q.dtype)
        dk = _put(plan, chunk, dk, _product(_turned(d_scores), q))
        dv = _put(plan, chunk, dv, _product(_turned(p.astype(d_out.dtype)), d_out))
        return (dk, dv, d_weights), _product(d_scores, seen.k).astype(q.dtype)

    totals = (jnp.zeros(k.shape, wide(k)), jnp.zeros(v.shape, wide(v)), jax.tree.map(jnp.zeros_like, weights))
    xs = (q, q_positions, q_segments, d_out, delta, logsumexp)
    (dk, dv, d_weights), dq = _each(plan, one, totals, xs)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), d_weights, None


beside.defvjp(_forward, _backward)


def attend_beside(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    where: masks.Visibility,
    score: Score | None,
    scale: float,
    by_index: bool,
) -> Float[Array, "B L H M"]:
    """`dense`, by tiles side by side. `by_index`: a window whose keys follow from the index of the query."""
    batch, length, heads, width = q.shape
    keys, groups = k.shape[1:3]
    repeats = heads // groups
    plan = plan_of(device_rows(batch), heads, length, keys, where.limits, by_index)
    of_queries = (plan.chunks, plan.tiles)
    more = plan.chunks * plan.tiles * plan.side - length
    before = plan.ahead * plan.keys
    behind = plan.blocks * plan.keys - before - keys

    def cut(x: Array, counts: tuple[int, ...], padding: tuple[int, int], value: int = 0) -> Array:
        """[B, length, ...] as [*counts, B, length / product of counts, ...]."""
        x = jnp.pad(x, [(0, 0), padding] + [(0, 0)] * (x.ndim - 2), constant_values=value)
        x = x.reshape(x.shape[0], *counts, -1, *x.shape[2:])
        return jnp.moveaxis(x, 0, len(counts))

    of_q, of_k = (
        partial(cut, counts=of_queries, padding=(0, more)),
        partial(cut, counts=(plan.blocks,), padding=(before, behind)),
    )
    q_segments = jnp.zeros_like(where.q_positions) if where.q_segments is None else where.q_segments
    k_segments = jnp.zeros_like(where.k_positions) if where.k_segments is None else where.k_segments
    # Padding queries and padding keys have different segments, so that nothing sees them.
    ids = (
        of_q(where.q_positions),
        of_k(where.k_positions),
        of_q(q_segments, value=NOBODY),
        of_k(k_segments, value=NOBODY + 1),
    )
    tiles = of_q(q * scale).reshape(*of_queries, batch, plan.side, groups, repeats, width)
    tiles = jnp.transpose(tiles, (0, 1, 2, 4, 5, 3, 6)).reshape(*of_queries, batch, groups, repeats * plan.side, width)
    blocks = [jnp.moveaxis(of_k(x), 3, 2) for x in (k, v)]  # [Z, B, G, keys, K]
    weights: list[Array] = []
    if score is not None:
        # Captured arrays become arguments, so that gradients reach them.
        seen = plan.keys * (plan.ahead + 1 + plan.after)
        shape = (batch, heads, plan.side, seen)
        at = jnp.zeros((where.k_positions.shape[0], seen), jnp.int32)
        score, weights = jax.closure_convert(partial(score), jnp.zeros(shape, wide(q)), ids[0][0, 0], at)
    out = beside(plan, score, tiles, *blocks, tuple(weights), ids)
    out = out.reshape(*of_queries, batch, groups, repeats, plan.side, -1)
    out = jnp.transpose(out, (2, 0, 1, 5, 3, 4, 6)).reshape(batch, -1, heads, out.shape[-1])
    return out[:, :length]
