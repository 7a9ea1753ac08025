"""The key/value caches of decoding: explicit pytrees, in and out.

`empty` makes one, `extend` puts new tokens in and gives the keys that they may attend to.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class Keys(NamedTuple):
    """Keys and values with the position and the segment of each. Padding has segment 0, an empty slot -1."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G M"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]


class Kept(NamedTuple):
    """The same as they are stored: heads before slots, as the products of attention want them, so that a step does not
    turn around all that was written before it (a fifth of its time on two cores)."""

    k: Float[Array, "B G S K"]
    v: Float[Array, "B G S M"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]


class FullCache(NamedTuple):
    """Every token so far. All rows write to the same slot; who may see whom follows from positions and segments, so
    prompts of different lengths share a batch."""

    keys: Kept
    next_slot: Int[Array, ""]


class RollingCache(NamedTuple):
    """The token itself and the `window` before it, and not one slot more: position p lives in slot p mod (window + 1).

    Each row holds one sequence.
    """

    keys: Kept


Cache = FullCache | RollingCache


def empty(batch: int, slots: int, heads: int, head_dim: int, value_dim: int, window: int | None = None) -> Cache:
    """A cache with nothing in it, for sequences of `slots` tokens; of a window, at most window + 1 of them."""
    size = slots if window is None else min(slots, window + 1)
    keys = Kept(
        k=jnp.zeros((batch, heads, size, head_dim)),
        v=jnp.zeros((batch, heads, size, value_dim)),
        positions=jnp.zeros((batch, size), jnp.int32),
        segments=jnp.full((batch, size), -1, jnp.int32),
    )
    return FullCache(keys, jnp.zeros((), jnp.int32)) if size == slots else RollingCache(keys)


def extend(cache: Cache, new: Keys) -> tuple[Keys, Cache]:
    """What L new tokens may attend to, themselves included, and the cache with them.

    The caller makes a full cache long enough: past its end slots would be overwritten. A rolling cache takes tokens
    whose positions go on from those it has, the real ones (segment 1) before the padding of each row.
    """
    fresh, old = _turned(Kept, new), cache.keys
    if isinstance(cache, FullCache):
        written = Kept(*(lax.dynamic_update_slice_in_dim(kept, x.astype(kept.dtype), cache.next_slot, axis)
                         for kept, x, axis in zip(old, fresh, _SLOTS, strict=True)))  # fmt: skip
        return _turned(Keys, written), FullCache(written, cache.next_slot + new.k.shape[1])
    both = (
        jnp.concatenate([kept, x.astype(kept.dtype)], axis) for kept, x, axis in zip(old, fresh, _SLOTS, strict=True)
    )
    return _turned(Keys, Kept(*both)), RollingCache(_rolled(old, fresh))


_SLOTS = (2, 2, 1, 1)  # the axis of the slots in each array of Kept


def _turned(form: Any, keys: Any) -> Any:
    """Keys from what is kept of them, or the other way round."""
    return form(jnp.swapaxes(keys.k, 1, 2), jnp.swapaxes(keys.v, 1, 2), keys.positions, keys.segments)


def _rolled(old: Kept, new: Kept) -> Kept:
    """Each slot with the newest token that belongs there."""
    slots, length = old.k.shape[2], new.k.shape[2]
    first = new.positions[:, :1]
    count = (new.segments > 0).sum(axis=1, keepdims=True)
    last = first + count - 1
    index = last - (last - jnp.arange(slots)) % slots - first  # of the newest position of each slot, among the new
    fresh: Bool[Array, "B S"] = (index >= 0) & (index < count)
    source = jnp.clip(index, 0, length - 1)

    def put(kept: Array, x: Array, axis: int) -> Array:
        shape = [1] * x.ndim
        shape[0], shape[axis] = source.shape
        taken = jnp.take_along_axis(x, source.reshape(shape), axis)
        return jnp.where(fresh.reshape(shape), taken.astype(kept.dtype), kept)

    return Kept(*(put(kept, x, axis) for kept, x, axis in zip(old, new, _SLOTS, strict=True)))
