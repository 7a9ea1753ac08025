"""Which queries see a key that is not finite, without an array of all scores."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from transformer.model import masks


def spoilt(
    where: masks.Visibility, hidden: Bool[Array, "rows S G"], consecutive: bool
) -> tuple[Bool[Array, " *rows_and_length"] | None, Bool[Array, " *rest"]]:
    """Whether each query sees a key (None: each does), and whether it sees a marked one. In self-attention a query sees
    a run of keys, so that it takes the nearest marked keys only; no [L, S] array is made."""
    (left, right), length, keys = where.limits, where.q_positions.shape[1], hidden.shape[1]
    places, last_key = jnp.arange(keys), keys - 1
    own = where.q_segments is not None and where.q_segments is where.k_segments
    by_index = (own or where.q_segments is None) and consecutive and length == keys
    if not by_index and (where.q_segments is not None or where.limits != (None, None)):
        return _by_mask(where, hidden)
    sees = None
    if where.k_lengths is not None:
        hidden &= (places < where.k_lengths[:, None])[..., None]
        farthest = 0 if left is None else jnp.maximum(jnp.arange(length) - left, 0)
        sees = farthest < where.k_lengths[:, None]
    if where.limits == (None, None) and not own:
        return sees, hidden.any(axis=1, keepdims=True)
    first, last = (
        (places * 0 if left is None else places - left),
        (places * 0 + last_key if right is None else places + right),
    )
    if own:
        ids = jnp.asarray(where.k_segments)
        begins = jnp.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
        first = jnp.maximum(first, lax.cummax(jnp.where(begins, places, 0), axis=1))
        ends = jnp.pad(begins[:, 1:], ((0, 0), (0, 1)))
        last = jnp.minimum(last, lax.cummin(jnp.where(ends, places, last_key), axis=1, reverse=True))
    first, last = (jnp.atleast_2d(x)[..., None] for x in (first, last))
    wrong = lax.cummax(jnp.where(hidden, places[:, None], -1), axis=1) >= jnp.maximum(first, 0)
    if right != 0:
        wrong |= lax.cummin(jnp.where(hidden, places[:, None], keys), axis=1, reverse=True) <= jnp.minimum(
            last, last_key
        )
    return sees, wrong


def spoilt_heads(
    where: masks.Visibility, q: Float[Array, "B L H K"], k: Float[Array, "B S G K"], consecutive: bool
) -> Bool[Array, "B L H"]:
    """Whether a head of a query is marked, or sees a marked key; a query that sees no key does neither."""
    sees, wrong = spoilt(where, jnp.isnan(k[..., 0]), consecutive)
    wrong = jnp.repeat(wrong, q.shape[2] // k.shape[2], axis=2) | jnp.isnan(q[..., 0])
    return wrong if sees is None else wrong & sees[..., None]


def _by_mask(
    where: masks.Visibility, hidden: Bool[Array, "rows S G"]
) -> tuple[Bool[Array, " *rows_and_length"] | None, Bool[Array, " *rest"]]:
    """`spoilt` for any mask, by a product with it."""
    mask = where.mask()
    if mask is None:
        return None, hidden.any(axis=1, keepdims=True)
    half = jnp.bfloat16  # sums of zeros and ones are 0 or not, however they are rounded
    counts = jnp.matmul(mask.astype(half), hidden.astype(half), preferred_element_type=jnp.float32)
    return mask.any(axis=-1), counts > 0
