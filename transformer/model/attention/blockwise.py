"""Full attention in O(L + S) memory: tiles of queries over slabs of all keys. Windows are right here too, and slabs
outside them are skipped, but those that a window only touches are computed whole."""

from typing import Any

from jaxtyping import Array, Float, Int

from transformer.model import masks
from transformer.model.attention.tiles import Tiling, attend_tiles, tile_length

# Two cores reach their full speed in products of 512 x 512 x K (200 GFLOP/s; 256 x 256 x K: 100, on one of them).
LARGEST = 512
SCORES = 1 << 24  # in a tile at once, of all heads and rows: 64 MiB


def largest_tile(batch: int, heads: int) -> int:
    """LARGEST, or half or a quarter of it where the scores of a tile would take too much memory."""
    return next((n for n in (LARGEST, LARGEST // 2) if batch * heads * n * n <= SCORES), LARGEST // 4)


def blockwise(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    limits: masks.Band,
    q_positions: Int[Array, "#B L"],
    k_positions: Int[Array, "#B S"],
    q_segments: Int[Array, "#B L"] | None,
    k_segments: Int[Array, "#B S"] | None,
    bias: Any,
    scale: float,
) -> Float[Array, "B L H M"]:
    """`dense` in memory that grows with L + S."""
    largest = largest_tile(q.shape[0], q.shape[2])
    block, slab = tile_length(q.shape[1], largest), tile_length(k.shape[1], largest)
    tiling = Tiling(block, slab, across=-(-k.shape[1] // slab), shift=0, before=0, limits=limits)
    return attend_tiles(tiling, q, k, v, bias, q_positions, k_positions, q_segments, k_segments, scale)
