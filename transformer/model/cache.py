"""The key/value caches of decoding: explicit pytrees, in and out.

`empty` makes one, `extend` puts new tokens in and gives the keys that they may attend to.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer.model.tokens import Tokens


class Keys(NamedTuple):
    """Keys and values, and where their tokens stand."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G M"]
    where: Tokens

    def kept(self) -> "Kept":
        """In the layout that decoding keeps."""
        return Kept(jnp.swapaxes(self.k, 1, 2), jnp.swapaxes(self.v, 1, 2), self.where)


class Kept(NamedTuple):
    """Keys and values as decoding keeps them: heads before slots, as the products of attention want them, so that a
    step does not transpose all that was written before it (a fifth of its time on two cores)."""

    k: Float[Array, "B G S K"]
    v: Float[Array, "B G S M"]
    where: Tokens

    def keys(self) -> Keys:
        """In the layout of attention."""
        return Keys(jnp.swapaxes(self.k, 1, 2), jnp.swapaxes(self.v, 1, 2), self.where)


class FullCache(NamedTuple):
    """Every token so far. All rows write to the same slot; who may see whom follows from positions and segments, so
    prompts of different lengths share a batch. An empty slot has segment -1."""

    kept: Kept
    next_slot: Int[Array, ""]


class RollingCache(NamedTuple):
    """The token itself and the `window` before it, and not one slot more: position p lives in slot p mod (window + 1).

    Each row holds one sequence.
    """

    kept: Kept


Cache = FullCache | RollingCache


def empty(
    batch: int, slots: int, heads: int, head_dim: int, value_dim: int, window: int | None = None, dtype: Any = "float32"
) -> Cache:
    """A cache with nothing in it, for sequences of `slots` tokens; of a window, at most window + 1 of them."""
    size = slots if window is None else min(slots, window + 1)
    nowhere = Tokens(jnp.zeros((batch, size), jnp.int32), jnp.full((batch, size), -1, jnp.int32))
    kept = Kept(
        jnp.zeros((batch, heads, size, head_dim), dtype), jnp.zeros((batch, heads, size, value_dim), dtype), nowhere
    )
    return FullCache(kept, jnp.zeros((), jnp.int32)) if size == slots else RollingCache(kept)


def extend(cache: Cache, new: Keys) -> tuple[Keys, Cache]:
    """What L new tokens may attend to, themselves included, and the cache with them.

    The caller makes a full cache long enough: past its end slots would be overwritten. A rolling cache takes tokens
    whose positions go on from those it has, the real ones before the padding of each row.
    """
    length = new.k.shape[1]
    fresh, old = new._replace(where=new.where.whole(*new.k.shape[:2])).kept(), cache.kept
    if isinstance(cache, FullCache):
        put = lambda kept, x: lax.dynamic_update_slice_in_dim(  # noqa: E731
            kept, x.astype(kept.dtype), cache.next_slot, _slots(x)
        )
        written = jax.tree.map(put, old, fresh)
        return written.keys(), FullCache(written, cache.next_slot + length)
    both = jax.tree.map(lambda kept, x: jnp.concatenate([kept, x.astype(kept.dtype)], _slots(x)), old, fresh)
    return both.keys(), RollingCache(_rolled(old, fresh))


def _slots(x: Array) -> int:
    """The axis of the slots in an array of `Kept`."""
    return 2 if x.ndim == 4 else 1


def _rolled(old: Kept, new: Kept) -> Kept:
    """Each slot with the newest token that belongs there."""
    slots, length = old.k.shape[2], new.k.shape[2]
    assert new.where.positions is not None, "extend gives them"
    first = new.where.positions[:, :1]
    count = new.where.real(length).sum(axis=1, keepdims=True)
    last = first + count - 1
    index = last - (last - jnp.arange(slots)) % slots - first  # of the newest position of each slot, among the new
    fresh: Bool[Array, "B S"] = (index >= 0) & (index < count)
    source = jnp.clip(index, 0, length - 1)

    def put(kept: Array, x: Array) -> Array:
        shape = [1] * x.ndim
        shape[0], shape[_slots(x)] = source.shape
        taken = jnp.take_along_axis(x, source.reshape(shape), _slots(x))
        return jnp.where(fresh.reshape(shape), taken.astype(kept.dtype), kept)

    return jax.tree.map(put, old, new)
