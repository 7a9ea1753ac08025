"""Sliding windows in O(L·w) time and memory, forward and backward, in plain XLA.

Queries are cut into blocks of c; block i meets the c + left + right keys that any of its queries can see:

    keys     . . . . . . . . . . . .
    block 0  [q q q]k k              left = 0, right = 2, c = 3
    block 1        [q q q]k k
    block 2              [q q q]k k

Blocks are cut by slices and concatenations of whole blocks, whose backward pass is the same, and not by a gather,
whose backward pass is a scatter-add. Within a block the mask is the positions' (transformer.model.masks), so the
width is exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer.model import masks
from transformer.model.attention.dense import weighted_values


def block_length(length: int, left: int, right: int) -> int:
    """Queries a block: near the width of the band, so that at most about half of the computed scores are masked;
    at least 16, under which matrix products lose more than the mask saves."""
    return max(1, min(length, max(16, left + right)))


def _neighbourhoods(x: Array, block: int, before: int, after: int, axis_blocks: int) -> Array:
    """[B, blocks · block, ...] -> [B, blocks, (before + 1 + after) · block, ...]: each block with its neighbours."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (before * block, after * block)
    x = jnp.pad(x, padding).reshape(x.shape[0], axis_blocks + before + after, block, *x.shape[2:])
    return jnp.concatenate([x[:, i : i + axis_blocks] for i in range(before + 1 + after)], axis=2)


def check_consecutive(q_positions: Array, k_positions: Array, q_segments: Array, k_segments: Array) -> None:
    """The band is cut by index, so inside a segment positions must grow with the index, for queries and keys alike.

    Padding (segment 0) may have any positions. Traced arrays are taken at their word.
    """
    ids = (q_positions, k_positions, q_segments, k_segments)
    if any(isinstance(x, jax.core.Tracer) for x in ids):
        return
    q_at, k_at, q_in, k_in = np.broadcast_arrays(*(np.asarray(x) for x in ids))
    positions, segments = np.concatenate([q_at, k_at], axis=1), np.concatenate([q_in, k_in], axis=1)
    offset = positions - np.tile(np.arange(q_at.shape[1]), 2)
    for row_offset, row_segments in zip(offset, segments, strict=True):
        for segment in np.unique(row_segments[row_segments > 0]):
            if np.ptp(row_offset[row_segments == segment]):
                raise ValueError(
                    "backend='banded' needs positions that grow by one inside a segment, the same for queries and "
                    "keys, and these do not: use backend='dense'"
                )


def banded(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G M"],
    *,
    limits: masks.Band,
    q_positions: Int[Array, "#B L"],
    k_positions: Int[Array, "#B L"],
    q_segments: Int[Array, "#B L"] | None,
    k_segments: Int[Array, "#B L"] | None,
    scale: float,
) -> Float[Array, "B L H M"]:
    """`dense` for a window on both sides, at its cost. What padding gives is finite, but unspecified."""
    batch, length, heads, _ = q.shape
    groups = k.shape[2]
    # A band wider than the sequence is the sequence.
    left, right = (length - 1 if side is None else min(side, length - 1) for side in limits)
    block = block_length(length, left, right)
    before, after = -(-left // block), -(-right // block)
    blocks = -(-length // block)

    def pad(x: Array, value: int = 0) -> Array:
        return jnp.pad(x, [(0, 0), (0, blocks * block - length)] + [(0, 0)] * (x.ndim - 2), constant_values=value)

    # Keys outside the row get a segment of their own, which no query has.
    q_segments = jnp.zeros_like(q_positions) if q_segments is None else q_segments
    k_segments = jnp.zeros_like(k_positions) if k_segments is None else k_segments
    neighbours = [_neighbourhoods(pad(x), block, before, after, blocks) for x in (k, v, k_positions, k_segments)]
    index = _neighbourhoods(pad(jnp.ones((1, length), jnp.int32)), block, before, after, blocks)
    # The first and the last neighbour block are trimmed to what the band reaches.
    start, stop = before * block - left, before * block + block + right
    keys, values, key_positions, key_segments = (x[:, :, start:stop] for x in neighbours)
    inside = index[:, :, None, start:stop] == 1

    def cut(x: Array) -> Array:
        return pad(x).reshape(batch, blocks, block, *x.shape[2:])

    mask = inside & masks.visible(
        pad(q_positions).reshape(-1, blocks, block), key_positions, pad(q_segments).reshape(-1, blocks, block),
        key_segments, limits,
    )  # fmt: skip
    queries = jnp.moveaxis(cut(q * scale), 3, 2)  # [B, blocks, H, block, K]
    queries = queries.reshape(batch, blocks, groups, -1, block, q.shape[-1])
    keys = jnp.moveaxis(keys, 3, 2)[:, :, :, None]  # [B, blocks, G, 1, keys, K]
    values = jnp.moveaxis(values, 3, 2)[:, :, :, None]
    if heads > groups:
        keys, values = (jnp.broadcast_to(x, (*queries.shape[:4], *x.shape[4:])) for x in (keys, values))
    scores = jnp.matmul(queries, jnp.swapaxes(keys, -1, -2))
    out = weighted_values(scores, values, mask[:, :, None, None])
    out = jnp.moveaxis(out.reshape(batch, blocks, heads, block, -1), 2, 3)
    return out.reshape(batch, blocks * block, heads, -1)[:, :length]
