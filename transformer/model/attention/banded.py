"""Sliding windows in O(L·w) time and O(L) memory, forward and backward, in plain XLA.

A tile of c queries attends to a slice of c + left + right keys, all that its queries can see:

    keys     . . . . . . . . . . . .
    tile 0   [q q q]k k              left = 0, right = 2, c = 3
    tile 1         [q q q]k k
    tile 2               [q q q]k k

On processors `windows` does it, where the window is narrow and no function changes the scores. Slices are by index, so
positions must be consecutive within a segment. The mask inside a tile is computed from positions
(transformer.model.masks), so the window's width is exact.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.beside import attend_beside
from transformer.model.attention.blockwise import largest_tile
from transformer.model.attention.fused import on_each_device
from transformer.model.attention.marks import unmarked
from transformer.model.attention.scores import Score
from transformer.model.attention.spoilt import spoilt_heads
from transformer.model.attention.tiles import Tiling, attend_tiles, tile_length
from transformer.model.attention.windows import Fold, attend_windows
from transformer.platforms import device_rows, tuned


def tiling_of(rows: int, heads: int, length: int, limits: masks.Band) -> Tiling:
    """Tiles about as wide as the band, so that about half of the computed scores are visible; `rows` are per device."""
    left, right = (length - 1 if side is None else min(side, length - 1) for side in limits)
    largest = largest_tile(rows, heads)
    block = tile_length(length, min(largest, max(tuned().window_tile, left + right)))
    reach = block + left + right
    slab = tile_length(reach, 2 * largest)
    return Tiling(block, slab, slabs=-(-reach // slab), shift=block, before=left, limits=limits)


def check_consecutive(where: masks.Visibility, known: bool) -> None:
    """ValueError: within a segment, positions do not grow by one with the index, equally for queries and keys. Padding
    (segment 0) may have any positions. Traced positions cannot be checked: they raise ValueError unless `known` is
    set."""
    ones = np.ones((1, where.q_positions.shape[1]), np.int32)
    ids = (where.q_positions, where.k_positions, *(ones if x is None else x for x in where[3:5]))
    if any(isinstance(x, jax.core.Tracer) for x in ids):
        if not known:
            raise ValueError(
                "backend='banded' needs positions that grow by one inside a segment, and traced ones cannot be "
                "checked: say consecutive=True where they do, or use backend='blockwise'"
            )
        return
    q_at, k_at, q_in, k_in = np.broadcast_arrays(*(np.asarray(x) for x in ids))
    positions, segments = np.concatenate([q_at, k_at], axis=1), np.concatenate([q_in, k_in], axis=1)
    offset = positions - np.tile(np.arange(q_at.shape[1]), 2)
    for row_offset, row_segments in zip(offset, segments, strict=True):
        for segment in np.unique(row_segments[row_segments > 0]):
            if np.ptp(row_offset[row_segments == segment]):
                raise ValueError(
                    "backend='banded' needs positions that grow by one inside a segment, the same for queries and "
                    "keys, and these do not: use backend='blockwise'"
                )


def share_of(rows: int, heads: int, length: int, limits: masks.Band, scored: bool) -> float:
    """How much of all scores the tiles hold; `rows` are per device, and `scored` says whether a function changes
    them."""
    if (fold := fold_of(length, limits, scored)) is not None:
        return fold.scores() / length**2
    tiling = tiling_of(rows, heads, length, limits)
    return tiling.slabs * tiling.slab / length


def fold_of(length: int, limits: masks.Band, scored: bool) -> Fold | None:
    """How `windows` cuts rows, or None where it does not take them: on other platforms, where a function changes the
    scores, or where the window is wide."""
    fold = Fold.of(length, limits) if tuned().window_strip and not scored else None
    return fold if fold is not None and fold.is_few() else None


def banded(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G M"],
    *,
    where: masks.Visibility,
    consecutive: bool,
    score: Score | None,
    scale: float,
    finite: bool = False,
) -> Float[Array, "B L H M"]:
    """`dense` for a window on both sides, at O(L·w) cost. The output of padding is finite but unspecified."""
    batch, length, heads, _ = q.shape
    ids = where.with_ids()
    if tuned().side_by_side:
        return attend_beside(q, k, v, ids, score, scale, by_index=True)
    if (fold := fold_of(length, where.limits, score is not None)) is None:
        return attend_tiles(tiling_of(device_rows(batch), heads, length, where.limits), q, k, v, score, ids, scale)
    wrong = None if finite else spoilt_heads(where, q, k, consecutive)
    q, k = (q, k) if finite else (unmarked(q), unmarked(k))
    k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) if x.shape[2] < heads else x for x in (k, v))
    call = partial(attend_windows, fold)  # XLA cannot split a loop over rows
    out = on_each_device(call, q * scale, k, v, ids.q_segments, ids.k_segments)
    return out if wrong is None else jnp.where(wrong[..., None], jnp.nan, out)
