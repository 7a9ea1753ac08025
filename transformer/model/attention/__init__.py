"""Attention: one pure entry point, `attend`, and one file a backend (BACKENDS)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.model import masks
from transformer.model.attention.banded import banded, block_length, check_consecutive
from transformer.model.attention.dense import dense

BACKENDS: dict[str, Callable[..., Array]] = {"dense": dense, "banded": banded}


def choose(length: int, keys: int, limits: masks.Band, explicit_positions: bool) -> str:
    """The backend that "auto" takes: the banded one where it computes less than half of the scores.

    Positions given by the caller may be anything, so "auto" answers them with the dense form; who knows them to be
    consecutive inside a segment asks for "banded".
    """
    left, right = limits
    if explicit_positions or length != keys or left is None or right is None:
        return "dense"
    return "banded" if 2 * (block_length(length, left, right) + left + right) < length else "dense"


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    causal: bool = False,
    window: masks.Window = None,
    q_positions: Int[Array, "#B L"] | None = None,
    k_positions: Int[Array, "#B S"] | None = None,
    q_segments: Int[Array, "#B L"] | None = None,
    k_segments: Int[Array, "#B S"] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Array, "B L H M"]:
    """softmax(scale · Q K^T) V over the keys that a query may see; who sees whom is in `transformer.model.masks`.

    Args:
      q, k, v: queries, keys and values; G key/value heads, G divides H; M may differ from K.
      causal: no key after the query.
      window: visible neighbours besides oneself: w means (w, w), or (w, 0) when causal.
      q_positions, k_positions: default 0, 1, 2, ...; "banded" needs them consecutive inside a segment.
      q_segments, k_segments: a query sees keys of its own segment only (packed rows; padding has segment 0).
      scale: default 1 / sqrt(K).
      backend: "auto", or a row of BACKENDS.

    Raises:
      ValueError: shapes that do not fit, a negative window, a backend that cannot do what is asked.
    """
    batch, length, heads, width = q.shape
    keys, groups = k.shape[1], k.shape[2]
    if k.shape[0] != batch or v.shape[:3] != k.shape[:3] or k.shape[3] != width:
        raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit: q [B,L,H,K], k [B,S,G,K], v [B,S,G,M]")
    if heads % groups:
        raise ValueError(f"{groups} key/value heads do not divide {heads} query heads")
    if (q_segments is None) != (k_segments is None):
        raise ValueError("q_segments and k_segments come together: give both or neither")
    limits = masks.band(causal, window)
    if backend == "auto":
        backend = choose(length, keys, limits, q_positions is not None or k_positions is not None)
    if backend not in BACKENDS:
        raise ValueError(f"there is no attention backend {backend!r}: choose 'auto' or one of {sorted(BACKENDS)}")
    if backend == "banded":
        if None in limits:
            raise ValueError("backend='banded' needs a window on both sides: use backend='dense' for full attention")
        if length != keys:
            raise ValueError(
                f"backend='banded' needs as many keys as queries, not {keys} and {length}: use backend='dense'"
            )

    def rows(ids: Array | None, default: Array | None, size: int, name: str) -> Array | None:
        ids = default if ids is None else jnp.asarray(ids)
        if ids is None:
            return None
        if ids.ndim != 2 or ids.shape[1] != size or ids.shape[0] not in (1, batch):
            raise ValueError(f"{name} has shape {ids.shape}, not ({batch}, {size})")
        return ids

    ids = {
        "q_positions": rows(q_positions, jnp.arange(length)[None], length, "q_positions"),
        "k_positions": rows(k_positions, jnp.arange(keys)[None], keys, "k_positions"),
        "q_segments": rows(q_segments, None, length, "q_segments"),
        "k_segments": rows(k_segments, None, keys, "k_segments"),
    }
    if backend == "banded":
        everywhere = jnp.ones((1, length), jnp.int32)
        check_consecutive(*(everywhere if x is None else x for x in ids.values()))
    return BACKENDS[backend](q, k, v, limits=limits, scale=width**-0.5 if scale is None else scale, **ids)
