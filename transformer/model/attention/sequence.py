"""Attention where the length axis is split over the devices of the mesh axis "sequence": a window by a halo, all else
by a ring. Inside, arrays are those of one device."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.halo import attend_halo
from transformer.model.attention.ring import Ring, attend_ring
from transformer.model.attention.scores import Score
from transformer.platforms import LENGTH_AXIS, ROW_AXES, row_shards


def by_halo(length: int, keys: int, limits: masks.Band, consecutive: bool, devices: int) -> bool:
    """Whether a halo is possible and less than what a ring sends."""
    left, right = limits
    if left is None or right is None or not consecutive or length != keys:
        return False
    return left + right < (devices - 1) * (length // devices)


def attend_sequence(
    attend: Callable[..., Array],
    devices: int,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    where: masks.Visibility,
    consecutive: bool,
    score: Score | None,
    scale: float,
) -> Float[Array, "B L H M"]:
    """`dense` of marked arrays whose length is split over `devices` devices; `attend` is that of one device.
    ValueError: a length does not divide."""
    batch, length, heads, _ = q.shape
    keys, groups = k.shape[1], k.shape[2]
    if length % devices or keys % devices:
        raise ValueError(f"{length} queries and {keys} keys do not divide over {devices} devices of {LENGTH_AXIS!r}")
    mesh = jax.sharding.get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    # A score function takes the scores of all heads, so the compiler has to split them.
    manual = free - {"tensor"} if score is not None else free
    over_heads = "tensor" if "tensor" in manual and heads % mesh.shape["tensor"] == 0 else None
    parts = mesh.shape["tensor"] if over_heads else 1
    if groups % parts:  # each device gets the key heads of its query heads
        k, v = (jnp.repeat(x, math.lcm(groups, parts) // groups, axis=2) for x in (k, v))
    rows = tuple(axis for axis in ROW_AXES if axis in free) if batch % row_shards() == 0 else None
    of_ids = {True: PartitionSpec(None, LENGTH_AXIS), False: PartitionSpec(rows, LENGTH_AXIS)}
    of_heads = PartitionSpec(rows, LENGTH_AXIS, over_heads)

    ids = where.with_ids()
    q_segments, k_segments = (
        jnp.zeros_like(positions) if segments is None else segments
        for segments, positions in ((ids.q_segments, ids.q_positions), (ids.k_segments, ids.k_positions))
    )
    seen = (ids.q_positions, ids.k_positions, q_segments, k_segments)

    # Its weights are arguments: inside another `shard_map`, what is traced cannot be closed over. A callable that is no
    # pytree has none.
    of_weights = None if jax.tree_util.all_leaves([score]) else score

    def local(q: Array, k: Array, v: Array, seen: Any, of_weights: Any) -> Array:
        here, change = masks.Visibility(where.limits, *seen), score if of_weights is None else of_weights
        if not by_halo(length, keys, where.limits, consecutive, devices):
            ring = Ring(LENGTH_AXIS, devices, where.limits)
            return attend_ring(ring, q, k, v, change, here, scale)

        def alone(q: Array, k: Array, v: Array, positions: Array, segments: Array) -> Array:
            return attend(
                q,
                k,
                v,
                window=where.limits,
                q_positions=positions,
                k_positions=positions,
                q_segments=segments,
                k_segments=segments,
                consecutive=True,
                score=change,
                scale=scale,
                marked=True,
            )

        return attend_halo(alone, LENGTH_AXIS, devices, q, k, v, here)

    split = jax.shard_map(
        local,
        in_specs=(of_heads, of_heads, of_heads, tuple(of_ids[x.shape[0] < batch] for x in seen), PartitionSpec()),
        out_specs=of_heads,
        axis_names=manual,
        check_vma=False,
    )
    return split(q, k, v, seen, of_weights)
