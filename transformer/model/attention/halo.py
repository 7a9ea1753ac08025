"""Windows over a length that is split over devices: each device gets its neighbours' nearest keys and values, its halo.

    keys of three devices      [0 1 2 3] [4 5 6 7] [8 9 . .]
    window (2, 1): what the second one computes with       2 3 [4 5 6 7] 8

A device then attends to a row of its own, whose queries are its own and, so that any backend can be used, zeros in the
halo, which are cut off. What is sent is in proportion to the window, whatever the length.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.tiles import NOBODY


def attend_halo(
    attend: Callable[..., Array],
    axis: str,
    devices: int,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G M"],
    where: masks.Visibility,
) -> Float[Array, "B L H M"]:
    """A window on both sides, inside `jax.shard_map`: `attend(q, k, v, positions, segments)` of a longer row. `where`
    is that of this device, with segments."""
    length, here = q.shape[1], lax.axis_index(axis)
    left, right = where.limits
    left, right = (length if side is None else min(side, (devices - 1) * length) for side in (left, right))

    def piece(x: Array, hop: int, size: int, outside: int) -> Array:
        """Of the device `hop` places before this one (after it, if negative), the `size` nearest; `outside` where there
        is none."""
        nearest = x[:, length - size :] if hop > 0 else x[:, :size]
        pairs = [(device, device + hop) for device in range(devices) if 0 <= device + hop < devices]
        there = (here - hop >= 0) & (here - hop < devices)
        return jnp.where(there, lax.ppermute(nearest, axis, pairs), jnp.asarray(outside, x.dtype))

    def with_halo(x: Array, outside: int = 0) -> Array:
        def of(side: int, sign: int) -> list[Array]:
            """From the nearest device to the farthest."""
            hops = range(1, -(-side // length) + 1)
            return [piece(x, sign * hop, min(length, side - (hop - 1) * length), outside) for hop in hops]

        return jnp.concatenate([*reversed(of(left, 1)), x, *of(right, -1)], axis=1)

    assert where.k_segments is not None, "they are given"
    row = jnp.pad(q, ((0, 0), (left, right), (0, 0), (0, 0)))
    positions, segments = with_halo(where.k_positions), with_halo(where.k_segments, NOBODY)
    return attend(row, with_halo(k), with_halo(v), positions, segments)[:, left : left + length]
