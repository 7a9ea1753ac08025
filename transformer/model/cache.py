"""The key/value caches of decoding, explicit pytrees: `empty` makes one, `extend` adds tokens and returns the keys that
they may attend to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer.model.tokens import Tokens


class Keys(NamedTuple):
    """Keys and values, and the positions and segments of their tokens."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G M"]
    where: Tokens

    def kept(self) -> "Kept":
        return Kept(jnp.swapaxes(self.k, 1, 2), jnp.swapaxes(self.v, 1, 2), self.where)


class Kept(NamedTuple):
    """Keys and values in the layout of the cache: heads before slots, as the matrix products of attention need them. So
    a step does not transpose the whole cache (a fifth of its time on two cores)."""

    k: Float[Array, "B G S K"]
    v: Float[Array, "B G S M"]
    where: Tokens

    def keys(self) -> Keys:
        return Keys(jnp.swapaxes(self.k, 1, 2), jnp.swapaxes(self.v, 1, 2), self.where)


class FullCache(NamedTuple):
    """All tokens so far. All rows write to the same slot; the mask follows from positions and segments, so prompts of
    different lengths share a batch. An empty slot has segment -1."""

    kept: Kept
    next_slot: Int[Array, ""]


class RollingCache(NamedTuple):
    """The current token and the `window` before it: position p is in slot p mod (window + 1). One sequence per row."""

    kept: Kept


Cache = FullCache | RollingCache


def empty(
    batch: int, slots: int, heads: int, head_dim: int, value_dim: int, window: int | None = None, dtype: Any = "float32"
) -> Cache:
    """An empty cache for sequences of `slots` tokens; with a window, it has at most window + 1 slots."""
    size = slots if window is None else min(slots, window + 1)
    nowhere = Tokens(jnp.zeros((batch, size), jnp.int32), jnp.full((batch, size), -1, jnp.int32))
    kept = Kept(
        jnp.zeros((batch, heads, size, head_dim), dtype), jnp.zeros((batch, heads, size, value_dim), dtype), nowhere
    )
    return FullCache(kept, jnp.zeros((), jnp.int32)) if size == slots else RollingCache(kept)


def extend(cache: Cache, new: Keys) -> tuple[Keys, Cache]:
    """The keys that L new tokens may attend to, themselves included, and the updated cache. The caller makes a full
    cache long enough, or slots would be overwritten. A rolling cache takes tokens whose positions continue those it
    has; in each row, padding comes last."""
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
    """Each slot with the newest token whose position maps to it."""
    slots, length = old.k.shape[2], new.k.shape[2]
    assert new.where.positions is not None, "extend gives them"
    first = new.where.positions[:, :1]
    count = new.where.real(length).sum(axis=1, keepdims=True)
    last = first + count - 1
    index = last - (last - jnp.arange(slots)) % slots - first  # of each slot's newest position, among the new tokens
    fresh: Bool[Array, "B S"] = (index >= 0) & (index < count)
    source = jnp.clip(index, 0, length - 1)

    def put(kept: Array, x: Array) -> Array:
        shape = [1] * x.ndim
        shape[0], shape[_slots(x)] = source.shape
        taken = jnp.take_along_axis(x, source.reshape(shape), _slots(x))
        return jnp.where(fresh.reshape(shape), taken.astype(kept.dtype), kept)

    return jax.tree.map(put, old, new)
