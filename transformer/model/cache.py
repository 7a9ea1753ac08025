"""The key/value caches of decoding: explicit pytrees, in and out.

`empty` makes one, `extend` puts new tokens in and gives the keys that they may attend to.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class Keys(NamedTuple):
    """Keys and values with the position and the segment of each. Padding has segment 0, an empty slot -1."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G M"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]


class FullCache(NamedTuple):
    """Every token so far. All rows write to the same slot; who may see whom follows from positions and segments, so
    prompts of different lengths share a batch."""

    keys: Keys
    next_slot: Int[Array, ""]


class RollingCache(NamedTuple):
    """The token itself and the `window` before it, and not one slot more: position p lives in slot p mod (window + 1).

    Each row holds one sequence.
    """

    keys: Keys


Cache = FullCache | RollingCache


def empty(batch: int, slots: int, heads: int, head_dim: int, value_dim: int, window: int | None = None) -> Cache:
    """A cache with nothing in it, for sequences of `slots` tokens; of a window, at most window + 1 of them."""
    size = slots if window is None else min(slots, window + 1)
    keys = Keys(
        k=jnp.zeros((batch, size, heads, head_dim)),
        v=jnp.zeros((batch, size, heads, value_dim)),
        positions=jnp.zeros((batch, size), jnp.int32),
        segments=jnp.full((batch, size), -1, jnp.int32),
    )
    return FullCache(keys, jnp.zeros((), jnp.int32)) if size == slots else RollingCache(keys)


def extend(cache: Cache, new: Keys) -> tuple[Keys, Cache]:
    """What L new tokens may attend to, themselves included, and the cache with them.

    The caller makes a full cache long enough: past its end slots would be overwritten. A rolling cache takes tokens
    whose positions go on from those it has, the real ones (segment 1) before the padding of each row.
    """
    if isinstance(cache, FullCache):
        written = Keys(*(lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), cache.next_slot, axis=1)
                         for old, x in zip(cache.keys, new, strict=True)))  # fmt: skip
        return written, FullCache(written, cache.next_slot + new.k.shape[1])
    return (
        Keys(*(jnp.concatenate([old, x.astype(old.dtype)], axis=1) for old, x in zip(cache.keys, new, strict=True))),
        RollingCache(_rolled(cache.keys, new)),
    )


def _rolled(old: Keys, new: Keys) -> Keys:
    """Each slot with the newest token that belongs there."""
    slots, length = old.k.shape[1], new.k.shape[1]
    first = new.positions[:, :1]
    count = (new.segments > 0).sum(axis=1, keepdims=True)
    last = first + count - 1
    index = last - (last - jnp.arange(slots)) % slots - first  # of the newest position of each slot, among the new
    fresh: Bool[Array, "B S"] = (index >= 0) & (index < count)
    source = jnp.clip(index, 0, length - 1)

    def put(kept: Array, x: Array) -> Array:
        extra = (...,) + (None,) * (x.ndim - 2)
        return jnp.where(fresh[extra], jnp.take_along_axis(x, source[extra], axis=1).astype(kept.dtype), kept)

    return Keys(*(put(kept, x) for kept, x in zip(old, new, strict=True)))
