"""Full attention over a length that is split over devices, in O(L / devices) memory on each.

The devices stand in a ring. Each keeps its queries; keys and values visit every device in turn, with their positions
and segments (Liu et al. 2023, "Ring Attention with blockwise transformers"). A device updates the maximum score, the
sum of the weights and the sum of weighted values of its queries with each block that visits it, as a tile does with
each slab (`transformer.model.attention.tiles`), while the block travels on. In the backward pass keys and values go
round again, and the sums of their gradients follow them, one device behind, until they are at home.

Every block is computed, also one that causality hides: that saves no time where all devices wait for the one that sees
everything, and needs no branches.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer.model import masks
from transformer.model.attention.marks import unmarked
from transformer.model.attention.scores import HIDDEN, LOWEST, Score
from transformer.model.attention.tiles import NOBODY, tile_length
from transformer.model.products import wide
from transformer.platforms import tuned


class Ring(NamedTuple):
    """What is known when the program is traced."""

    axis: str  # of the mesh
    devices: int
    limits: masks.Band


class Block(NamedTuple):
    """The keys and values of one device, cut into slabs so that the scores of a slab fit into memory."""

    k: Float[Array, "slabs B G slab K"]
    v: Float[Array, "slabs B G slab M"]
    positions: Int[Array, "*slabs_and_rows slab"]
    segments: Int[Array, "*slabs_and_rows slab"]


def attend_ring(
    ring: Ring,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    score: Score | None,
    where: masks.Visibility,
    scale: float,
) -> Float[Array, "B L H M"]:
    """`dense` of one device's queries over the keys of all devices, inside `jax.shard_map`. `where` has those of this
    device, with segments."""
    batch, length, heads, width = q.shape
    keys, groups = k.shape[1], k.shape[2]
    most = max(tuned().window_tile, tuned().tile_scores // (batch * heads * length))
    slab = tile_length(keys, most)
    slabs = -(-keys // slab)

    def cut(x: Array, value: int = 0) -> Array:
        """[B, S, ...] -> [slab, B, position, ...]"""
        widths = [(0, 0), (0, slabs * slab - keys)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, widths, constant_values=value)
        return jnp.moveaxis(x.reshape(x.shape[0], slabs, slab, *x.shape[2:]), 1, 0)

    block = Block(
        jnp.swapaxes(cut(k), 2, 3),
        jnp.swapaxes(cut(v), 2, 3),
        cut(where.k_positions),
        cut(jnp.asarray(where.k_segments), NOBODY),
    )
    rows = jnp.moveaxis(q * scale, 1, 2).reshape(batch, groups, -1, width)  # the heads of a group follow each other
    weights: list[Array] = []
    if score is not None:
        # Captured arrays become arguments, so that gradients reach them.
        scores = jnp.zeros((batch, heads, length, slab), wide(q))
        score, weights = jax.closure_convert(partial(score), scores, where.q_positions, block.positions[0])
    out = _ring(ring, score, rows, block.k, block.v, tuple(weights), (where.q_positions, where.q_segments, *block[2:]))
    return jnp.moveaxis(out.reshape(batch, heads, length, -1), 1, 2)


def _following(ring: Ring, tree: Any) -> Any:
    """What the device before this one holds."""
    to_next = [(device, (device + 1) % ring.devices) for device in range(ring.devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis, to_next), tree)


def _matmul(x: Float[Array, "B G m n"], y: Float[Array, "B G n k"]) -> Float[Array, "B G m k"]:
    return jnp.matmul(x, y, preferred_element_type=wide(x))


def _t(x: Float[Array, "B G m n"]) -> Float[Array, "B G n m"]:
    return jnp.swapaxes(x, -1, -2)


def _mask(ring: Ring, rows: int, q_ids: tuple[Array, Array], slab: Block) -> Bool[Array, "#B 1 rows slab"]:
    mask = masks.visible(q_ids[0], slab.positions, q_ids[1], slab.segments, ring.limits)
    return jnp.tile(mask, (1, rows // mask.shape[1], 1))[:, None]


def _scored(score: Any, weights: Any, scores: Float[Array, "B G rows slab"], q_positions: Array, slab: Block) -> Array:
    of_heads = scores.reshape(scores.shape[0], -1, q_positions.shape[1], scores.shape[-1])
    return score(of_heads, q_positions, slab.positions, *weights).reshape(scores.shape).astype(scores.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(ring: Ring, score: Any, q: Array, k: Array, v: Array, weights: Any, ids: Any) -> Float[Array, "B G rows M"]:
    return _forward(ring, score, q, k, v, weights, ids)[0]


def _forward(ring: Ring, score: Any, q: Array, k: Array, v: Array, weights: Any, ids: Any) -> tuple[Array, Any]:
    q_ids, own = ids[:2], Block(k, v, *ids[2:])

    def one_slab(state: Any, slab: Block) -> tuple[Any, None]:
        peak, total, summed = state
        mask = _mask(ring, q.shape[2], q_ids, slab)
        scores = _matmul(q, _t(slab.k))
        if score is not None:
            scores = _scored(score, weights, jnp.where(mask, scores, 0), q_ids[0], slab)
        scores = jnp.where(mask, scores, HIDDEN)
        higher = jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
        p, shrink = jnp.exp(scores - higher), jnp.exp(peak - higher)
        total = total * shrink + p.sum(axis=-1, keepdims=True)
        return (higher, total, summed * shrink + _matmul(p.astype(slab.v.dtype), slab.v)), None

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        state, block = carry
        return (lax.scan(one_slab, state, block)[0], _following(ring, block)), None

    state = (
        jnp.full((*q.shape[:3], 1), LOWEST, wide(q)),
        jnp.zeros((*q.shape[:3], 1), wide(q)),
        jnp.zeros((*q.shape[:3], v.shape[-1]), wide(v)),
    )
    (state, last), _ = lax.scan(turn, (state, own), None, ring.devices - 1)
    peak, total, summed = lax.scan(one_slab, state, last)[0]
    total = jnp.where(total == 0, 1, total)
    out, logsumexp = (summed / total).astype(v.dtype), peak + jnp.log(total)
    return out, (q, k, v, weights, ids, out, logsumexp)


def _backward(ring: Ring, score: Any, kept: Any, d_out: Array) -> tuple[Any, ...]:
    q, k, v, weights, ids, out, logsumexp = kept
    q_ids, own = ids[:2], Block(unmarked(k), v, *ids[2:])
    # A query that saw NaN has no part in the gradients: its weights become 0.
    lost = ~jnp.isfinite(logsumexp)
    d_out, out, q = jnp.where(lost, 0, d_out), jnp.where(lost, 0, out), jnp.where(lost, 0, unmarked(q))
    logsumexp = jnp.where(lost, -HIDDEN, logsumexp)
    delta = (d_out.astype(wide(q)) * out.astype(wide(q))).sum(axis=-1, keepdims=True)

    def one_slab(state: Any, slab: Block) -> tuple[Any, tuple[Array, Array]]:
        dq, d_weights = state
        mask = _mask(ring, q.shape[2], q_ids, slab)
        scores = _matmul(q, _t(slab.k))
        if score is not None:
            change = lambda scores, weights: _scored(score, weights, scores, q_ids[0], slab)  # noqa: E731
            scores, pull = jax.vjp(change, jnp.where(mask, scores, 0), weights)
        # At most 1: scores so large that their sum rounds by more give no infinity.
        p = jnp.exp(jnp.minimum(jnp.where(mask, scores, HIDDEN) - logsumexp, 0))
        # What is hidden may be so large that its part here is infinite.
        d_scores = jnp.where(mask, p * (_matmul(d_out, _t(slab.v)) - delta), 0)
        if score is not None:
            d_scores, more = pull(d_scores)
            d_weights = jax.tree.map(jnp.add, d_weights, more)
        d_scores = d_scores.astype(q.dtype)
        dk, dv = _matmul(_t(d_scores), q), _matmul(_t(p.astype(d_out.dtype)), d_out)
        return (dq + _matmul(d_scores, slab.k), d_weights), (dk, dv)

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        state, block, sums = carry
        state, more = lax.scan(one_slab, state, block)
        return (state, _following(ring, block), jax.tree.map(jnp.add, _following(ring, sums), more)), None

    state = (jnp.zeros(q.shape, wide(q)), jax.tree.map(jnp.zeros_like, weights))
    state, sums = lax.scan(one_slab, state, own)
    ((dq, d_weights), _, sums), _ = lax.scan(turn, (state, _following(ring, own), sums), None, ring.devices - 1)
    dk, dv = _following(ring, sums)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), d_weights, None


_ring.defvjp(_forward, _backward)
