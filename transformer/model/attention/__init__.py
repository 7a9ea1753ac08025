"""Attention: one pure entry point, `attend`, and one file a backend (BACKENDS).

`choose` says which backend "auto" takes, and why.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.model import masks
from transformer.model.attention.banded import banded, check_consecutive, tiling_of
from transformer.model.attention.blockwise import blockwise
from transformer.model.attention.dense import dense
from transformer.model.attention.fused import fused, kernel

BACKENDS: dict[str, Callable[..., Array]] = {
    "dense": dense,
    "blockwise": blockwise,
    "banded": banded,
    "fused": fused,
}
# Scores of one head from which tiles are faster than all scores at once, forward and backward on two cores: 21 ms
# against 18 at length 512, 50 against 68 at 1,024 (experiments/attention_cost.py).
TILES_FROM = 1 << 19


class Choice(NamedTuple):
    """A backend, and a sentence on why."""

    backend: str
    reason: str


def choose(
    q: Any,
    k: Any,
    v: Any,
    limits: masks.Band,
    *,
    bias: Any = None,
    segments: bool = False,
    consecutive: bool = True,
) -> Choice:
    """What "auto" takes for arrays (or `jax.ShapeDtypeStruct`s) q [B, L, H, K], k [B, S, G, K], v [B, S, G, M].

    `limits` are those of `masks.band`. `segments`: there are some. `consecutive`: positions grow by one inside a
    segment, for queries and keys alike, as they do where none are given.
    """
    length, keys = q.shape[1], k.shape[1]
    name, why = kernel(q, k, v, limits, plain=bias is None and consecutive and not segments)
    if name is not None:
        return Choice("fused", f"{name}: {why}")
    if consecutive and length == keys and None not in limits:
        tiling = tiling_of(q.shape[0], q.shape[2], length, limits)
        if 2 * tiling.across * tiling.slab <= length:
            share = tiling.across * tiling.slab / length
            return Choice("banded", f"the window's tiles hold {share:.0%} of the scores")
    if length * keys >= TILES_FROM:
        return Choice("blockwise", f"{length} x {keys} scores a head are more than stay in a processor's cache")
    return Choice("dense", f"{length} x {keys} scores a head are few")


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
    bias: Any = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Array, "B L H M"]:
    """softmax(scale · Q K^T + bias) V over the keys that a query may see; who sees whom is in
    `transformer.model.masks`.

    Args:
      q, k, v: queries, keys and values; G key/value heads, G divides H; M may differ from K.
      causal: no key after the query.
      window: visible neighbours besides oneself: w means (w, w), or (w, 0) when causal.
      q_positions, k_positions: default 0, 1, 2, ...; "banded" needs them consecutive inside a segment.
      q_segments, k_segments: ids of -1 or more; a query sees keys of its own segment only (packed rows; padding has
        segment 0).
      bias: a function of (q_positions [*B L], k_positions [*B S]) that gives [*B H L S], called on tiles. One with
        weights is a pytree of them (`transformer.model.positions.T5Bias`), and a plain function has none.
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
    consecutive = q_positions is None and k_positions is None
    plain = consecutive and q_segments is None and bias is None
    if backend == "auto":
        segments = q_segments is not None
        backend = choose(q, k, v, limits, bias=bias, segments=segments, consecutive=consecutive).backend
    if isinstance(bias, FunctionType):
        bias = jax.tree_util.Partial(bias)
    if backend not in BACKENDS:
        raise ValueError(f"there is no attention backend {backend!r}: choose 'auto' or one of {sorted(BACKENDS)}")
    if backend == "banded":
        if None in limits:
            raise ValueError(
                "backend='banded' needs a window on both sides: use backend='blockwise' for full attention"
            )
        if length != keys:
            raise ValueError(
                f"backend='banded' needs as many keys as queries, not {keys} and {length}: use backend='blockwise'"
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
    more = {"plain": plain} if backend == "fused" else {}
    scale = width**-0.5 if scale is None else scale
    return BACKENDS[backend](q, k, v, limits=limits, bias=bias, scale=scale, **ids, **more)
