"""The key/value cache of decoding: an explicit pytree, in and out."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Cache(NamedTuple):
    """Keys and values of one self-attention layer, with the position and segment of every slot.

    All rows write to the same slot; who may see whom follows from positions and segments, so prompts of different
    lengths share a batch: their padding has segment 0, an empty slot -1.
    """

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G M"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    next_slot: Int[Array, ""]


def empty(batch: int, slots: int, heads: int, head_dim: int) -> Cache:
    """A cache of `slots` tokens with nothing in it."""
    return Cache(
        k=jnp.zeros((batch, slots, heads, head_dim)),
        v=jnp.zeros((batch, slots, heads, head_dim)),
        positions=jnp.zeros((batch, slots), jnp.int32),
        segments=jnp.full((batch, slots), -1, jnp.int32),
        next_slot=jnp.zeros((), jnp.int32),
    )


def write(
    cache: Cache,
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G M"],
    positions: Int[Array, "B L"],
    segments: Int[Array, "B L"],
) -> Cache:
    """The cache with L more slots filled. The caller makes it long enough: past its end slots would be overwritten."""

    def put(old: Array, new: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cache.next_slot, axis=1)

    return Cache(
        k=put(cache.k, k),
        v=put(cache.v, v),
        positions=put(cache.positions, positions),
        segments=put(cache.segments, segments),
        next_slot=cache.next_slot + k.shape[1],
    )
