"""Attention: one pure entry point, `attend`, and one file per backend (BACKENDS). `choose` selects the backend and says
why. Score functions are in `transformer.model.attention.scores`, masks in `transformer.model.masks`."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from transformer.model import masks
from transformer.model.attention import marks
from transformer.model.attention.banded import banded, check_consecutive, fold_of, share_of
from transformer.model.attention.blockwise import blockwise
from transformer.model.attention.dense import dense
from transformer.model.attention.fused import fused, padding_of
from transformer.model.attention.kernels import KERNELS, Padding, kernel
from transformer.model.attention.scores import Score
from transformer.model.attention.sequence import attend_sequence, by_halo
from transformer.model.attention.strips import Cut, strips
from transformer.platforms import device_rows, length_shards, target, tuned

BACKENDS: dict[str, Callable[..., Array]] = {
    "dense": dense,
    "blockwise": blockwise,
    "banded": banded,
    "fused": fused,
    "strips": strips,
}


class Choice(NamedTuple):
    """A backend, and a sentence with the reason."""

    backend: str
    reason: str


_noted: contextvars.ContextVar[list[Choice] | None] = contextvars.ContextVar("noted", default=None)


@contextlib.contextmanager
def noted_choices() -> Iterator[list[Choice]]:
    """Within, the list gets each choice that `attend` makes."""
    choices: list[Choice] = []
    token = _noted.set(choices)
    try:
        yield choices
    finally:
        _noted.reset(token)


def _noting(choosing: Callable[..., Choice]) -> Callable[..., Choice]:
    @functools.wraps(choosing)
    def noting(*arrays: Any, **told: Any) -> Choice:
        choice = choosing(*arrays, **told)
        if (noted := _noted.get()) is not None:
            noted.append(choice)
        return choice

    return noting


@_noting
def choose(
    q: Any,
    k: Any,
    v: Any,
    limits: masks.Band,
    *,
    score: Score | None = None,
    padding: Padding = "none",
    consecutive: bool = True,
) -> Choice:
    """The backend of "auto" for arrays (or `jax.ShapeDtypeStruct`s) q [B, L, H, K], k [B, S, G, K], v [B, S, G, M]. It
    depends on shapes, types and the target platform only. `limits` are those of `masks.band`. `consecutive`: within a
    segment the positions of queries and keys grow by one with the index."""
    length, keys = q.shape[1], k.shape[1]
    name, why = kernel(q, k, v, limits, score, padding, consecutive)
    if name is not None:
        return Choice("fused", f"{name}: {why}")
    if consecutive and length == keys and None not in limits:
        share = share_of(device_rows(q.shape[0]), q.shape[2], length, limits, score is not None)
        if share <= (1 / 2 if fold_of(length, limits, score is not None) is None else 2 / 3):
            return Choice("banded", f"the window's tiles hold {share:.0%} of the scores")
    if tuned().strips and length > 1 and score is None:
        cut = Cut.of(length, keys, limits, consecutive)
        if cut.is_few(length, keys) and (scores := cut.scores(length, keys)) < tuned().tiles_from:
            return Choice(
                "strips", f"{length} x {keys} scores a head are few; {scores / length / keys:.0%} are computed"
            )
    if length * keys >= tuned().tiles_from:
        if target() in KERNELS:
            return Choice("blockwise", f"{why}, and {length} x {keys} scores a head are many")
        return Choice("blockwise", f"{length} x {keys} scores a head are more than stay in a processor's cache")
    return Choice("dense", f"{length} x {keys} scores a head are few")


@_noting
def _split(length: int, keys: int, limits: masks.Band, consecutive: bool, devices: int) -> Choice:
    """What a length that is split over devices needs."""
    if by_halo(length, keys, limits, consecutive, devices):
        return Choice("halo", f"{devices} devices split the length, and get {limits} keys from their neighbours")
    return Choice("ring", f"{devices} devices split the length, and all keys visit each of them")


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    causal: bool = False,
    window: masks.Window = None,
    q_positions: Int[Array, "#B L"] | None = None,
    k_positions: Int[Array, "#B S"] | None = None,
    q_segments: Integer[Array, "#B L"] | Bool[Array, "#B L"] | None = None,
    k_segments: Integer[Array, "#B S"] | Bool[Array, "#B S"] | None = None,
    k_lengths: Int[Array, " B"] | None = None,
    consecutive: bool | None = None,
    score: Score | None = None,
    scale: float | None = None,
    backend: str = "auto",
    marked: bool = False,
    finite: bool = False,
) -> Float[Array, "B L H M"]:
    """softmax(score(scale · Q K^T)) V over the keys that a query may see.

    What a query may not see has no influence on its output and gradients, even if it is NaN or infinite. A query that
    sees a key or value that is not finite gives NaN, and gradients of 0. One that sees no key gives zeros, with
    gradients of 0. Derivatives of every order and mode go through "dense"; the tiled backends ("blockwise", "banded",
    "strips") have the first derivative in reverse mode only, and JAX refuses `jax.jvp` of them.

    Args:
      q, k, v: queries, keys and values; G key/value heads, G divides H; M may differ from K.
      causal: no key after the query.
      window: visible neighbours besides oneself: w means (w, w), or (w, 0) when causal.
      q_positions, k_positions: default 0, 1, 2, ...
      q_segments, k_segments: ids of documents, integers or booleans; a query sees only keys of its own document
        (packed rows; padding has its own id, 0 in our batches). Both or neither.
      k_lengths: right padding, without segments: only the first k_lengths[b] keys of row b are seen. The output of
        padding queries is finite but unspecified.
      consecutive: within a document the positions of queries and keys grow by one with the index, so that a window can
        be sliced by index. Default: True where no positions are given.
      score: changes the scores; see `transformer.model.attention.scores`.
      scale: default 1 / sqrt(K).
      backend: "auto", or a key of BACKENDS.
      marked: k and v come from `marks.marked`, so that a cache need not be checked again at every step.
      finite: q, k and v are known to be finite, and are not checked.

    Raises:
      ValueError: mismatched shapes, a negative window, a backend that does not support the call, or positions that
        contradict `consecutive` where it matters and they are not traced.
    """
    batch, length, heads, width = q.shape
    keys, groups = k.shape[1], k.shape[2]
    if k.shape[0] != batch or v.shape[:3] != k.shape[:3] or k.shape[3] != width:
        raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit: q [B,L,H,K], k [B,S,G,K], v [B,S,G,M]")
    if heads % groups:
        raise ValueError(f"{groups} key/value heads do not divide {heads} query heads")
    if (q_segments is None) != (k_segments is None):
        raise ValueError("q_segments and k_segments come together: give both or neither")
    if q_segments is not None and k_lengths is not None:
        raise ValueError("segments and k_lengths both say what is padding: give one of them")
    if k_lengths is not None and k_lengths.shape != (batch,):
        raise ValueError(f"k_lengths has shape {k_lengths.shape}, not ({batch},)")
    where = masks.Visibility(
        masks.band(causal, window),
        _rows(jnp.arange(length)[None] if q_positions is None else q_positions, batch, length, "q_positions"),
        _rows(jnp.arange(keys)[None] if k_positions is None else k_positions, batch, keys, "k_positions"),
        None if q_segments is None else _rows(q_segments, batch, length, "q_segments"),
        None if k_segments is None else _rows(k_segments, batch, keys, "k_segments"),
        k_lengths,
    )
    if consecutive is None:
        consecutive = q_positions is None and k_positions is None
    if causal and consecutive and length == keys:
        where = where._replace(k_lengths=None)  # only padding queries come after padding
    scale = width**-0.5 if scale is None else scale
    if backend == "auto" and (devices := length_shards()) > 1 and 0 not in (batch, length, keys):
        _split(length, keys, where.limits, consecutive, devices)
        q, k, v = (q, k, v) if finite else _marked(q, k, v, marked)
        return attend_sequence(attend, devices, q, k, v, where=where, consecutive=consecutive, score=score, scale=scale)
    if backend == "auto" and 0 in (batch, length, keys):
        backend = "dense"
    elif backend == "auto":
        padding = padding_of(where)
        backend = choose(q, k, v, where.limits, score=score, padding=padding, consecutive=consecutive).backend
    elif backend not in BACKENDS:
        raise ValueError(f"there is no attention backend {backend!r}: choose 'auto' or one of {sorted(BACKENDS)}")
    if backend == "banded":
        _check_banded(where, length, keys, consecutive)
    elif backend == "strips" and consecutive and length == keys and where.limits != (None, None):
        check_consecutive(where.with_ids(), known=True)
    if 0 in (batch, length, keys):
        return jnp.zeros((batch, length, heads, v.shape[3]), v.dtype)
    q, k, v = (q, k, v) if finite else _marked(q, k, v, marked)
    if backend in ("banded", "fused", "strips"):
        told: dict[str, Any] = {"consecutive": consecutive, "finite": finite}
        return BACKENDS[backend](q, k, v, where=where, score=score, scale=scale, **told)
    return BACKENDS[backend](q, k, v, where=where.with_ids(), score=score, scale=scale)


def _marked(q: Array, k: Array, v: Array, marked: bool) -> tuple[Array, Array, Array]:
    """q, k and v with marks; `marked`: k and v have them."""
    return marks.marked_queries(q), *((k, v) if marked else marks.marked(k, v))


def _rows(ids: Array, batch: int, size: int, name: str) -> Array:
    """Ids as int32 [1 or B, size]. ValueError: another shape, or not integers or booleans."""
    ids = jnp.asarray(ids)
    if ids.ndim != 2 or ids.shape[1] != size or ids.shape[0] not in (1, batch):
        raise ValueError(f"{name} has shape {ids.shape}, not ({batch}, {size})")
    if not (jnp.issubdtype(ids.dtype, jnp.integer) or ids.dtype == bool):
        raise ValueError(f"{name} has type {ids.dtype}: give whole numbers")
    return ids if ids.dtype == jnp.int32 else ids.astype(jnp.int32)


def _check_banded(where: masks.Visibility, length: int, keys: int, consecutive: bool) -> None:
    """ValueError: the band cannot be sliced by index."""
    if None in where.limits:
        raise ValueError("backend='banded' needs a window on both sides: use backend='blockwise' for full attention")
    if length != keys:
        raise ValueError(
            f"backend='banded' needs as many keys as queries, not {keys} and {length}: use backend='blockwise'"
        )
    check_consecutive(where.with_ids(), consecutive)
