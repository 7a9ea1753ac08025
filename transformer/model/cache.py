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
    """The keys that L new tokens may attend to, themselves included, and the updated cache. A rolling cache takes
    tokens whose positions continue those it has; padding may be anywhere. ValueError: a full cache has too few slots
    left; where their number is traced, what is written past the end is NaN, and so are the outputs of its tokens."""
    length = new.k.shape[1]
    fresh, old = new._replace(where=new.where.whole(*new.k.shape[:2])).kept(), cache.kept
    if isinstance(cache, FullCache):
        slots, after = old.k.shape[2], cache.next_slot + length
        if length > slots or (not isinstance(after, jax.core.Tracer) and int(after) > slots):
            raise ValueError(f"{length} more tokens do not fit into a cache of {slots} slots: start it with more slots")
        fresh = fresh._replace(k=jnp.where(after > slots, jnp.nan, fresh.k))  # or the last slots would be overwritten
        put = lambda kept, x: lax.dynamic_update_slice_in_dim(  # noqa: E731
            kept, x.astype(kept.dtype), cache.next_slot, _slots(x)
        )
        written = jax.tree.map(put, old, fresh)
        return written.keys(), FullCache(written, after)
    both = jax.tree.map(lambda kept, x: jnp.concatenate([kept, x.astype(kept.dtype)], _slots(x)), old, fresh)
    return both.keys(), RollingCache(_rolled(old, fresh))


def _slots(x: Array) -> int:
    """The axis of the slots in an array of `Kept`."""
    return 2 if x.ndim == 4 else 1


def _rolled(old: Kept, new: Kept) -> Kept:
    """Each slot with the newest token whose position maps to it."""
    slots, positions, real = old.k.shape[2], new.where.positions, new.where.real(new.k.shape[2])
    assert positions is not None, "extend gives them"
    last = jnp.where(real, positions, -1).max(axis=1, keepdims=True)
    newest = last - (last - jnp.arange(slots)) % slots  # the position of each slot; below 0: none yet
    here: Bool[Array, "B S L"] = (positions[:, None] == newest[..., None]) & real[:, None]
    fresh, source = here.any(axis=-1), here.argmax(axis=-1)

    def put(kept: Array, x: Array) -> Array:
        shape = [1] * x.ndim
        shape[0], shape[_slots(x)] = source.shape
        taken = jnp.take_along_axis(x, source.reshape(shape), _slots(x))
        return jnp.where(fresh.reshape(shape), taken.astype(kept.dtype), kept)

    return jax.tree.map(put, old, new)
