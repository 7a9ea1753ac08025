"""Full attention in O(L + S) memory: tiles of queries attend to slabs of all keys. Windows work too: slabs outside them
are skipped, but slabs partly inside are computed in full."""

from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.beside import attend_beside
from transformer.model.attention.scores import Score
from transformer.model.attention.tiles import Tiling, attend_tiles, tile_length
from transformer.platforms import device_rows, tuned


def largest_tile(rows: int, heads: int) -> int:
    """The platform's tile, or half or a quarter of it where a tile's scores would need too much memory; `rows` are per
    device."""
    side, most = tuned().tile, tuned().tile_scores
    return next((n for n in (side, side // 2) if rows * heads * n * n <= most), side // 4)


def blockwise(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    where: masks.Visibility,
    score: Score | None,
    scale: float,
) -> Float[Array, "B L H M"]:
    """`dense` in O(L + S) memory."""
    if tuned().side_by_side:
        return attend_beside(q, k, v, where, score, scale, by_index=False)
    largest = largest_tile(device_rows(q.shape[0]), q.shape[2])
    block, slab = tile_length(q.shape[1], largest), tile_length(k.shape[1], largest)
    tiling = Tiling(block, slab, slabs=-(-k.shape[1] // slab), shift=0, before=0, limits=where.limits)
    return attend_tiles(tiling, q, k, v, score, where, scale)
