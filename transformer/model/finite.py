"""Tokens that are not finite, kept out of a stack: `cleaned` puts 0 in their place before the first layer, so that no
layer has to check its queries, keys and values, and the stack's output is NaN for the tokens that `seen_finite` and
`memory_finite` name: those that see one of them, directly or through the layers between. Decoding, where a cache
outlives the call, marks keys and values instead (`transformer.model.attention.marks`)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer.model import masks
from transformer.model.attention.marks import put
from transformer.model.attention.spoilt import spoilt
from transformer.model.tokens import Tokens


def cleaned(x: Float[Array, "B L D"]) -> tuple[Float[Array, "B L D"], Bool[Array, "B L"]]:
    """Tokens, with 0 in place of those that are not finite, and which are finite."""
    finite = jnp.isfinite(x).all(axis=-1)
    return put(finite[..., None], x, 0.0), finite


def seen_finite(
    finite: Bool[Array, "B L"], where: Tokens, causal: bool, windows: Sequence[int | None]
) -> Bool[Array, "B L"]:
    """Which tokens see none but finite ones in self-attention, in layers with these windows one after another. Where
    positions grow by one, and where a layer has no window, the layers together reach as far as one layer with the sum
    of their windows."""
    if where.consecutive or None in windows:
        windows = [None if None in windows else sum(window for window in windows if window is not None)]
    for window in windows:
        finite &= ~_spoilt(finite, masks.band(causal, window), where, where, where.consecutive)
    return finite


def memory_finite(finite: Bool[Array, "B S"], memory: Tokens, where: Tokens, length: int) -> Bool[Array, "B _"]:
    """Which of `length` tokens see none but finite ones in cross-attention over a memory."""
    return ~_spoilt(finite, (None, None), where, memory, False, length)


def _spoilt(
    finite: Array, limits: masks.Band, queries: Tokens, keys: Tokens, consecutive: bool, length: int | None = None
) -> Array:
    size = finite.shape[1]
    length = size if length is None else length
    packed = queries.segments is not None or keys.segments is not None
    k_segments = keys.ids(size) if packed else None
    q_segments = None if not packed else k_segments if queries is keys else queries.ids(length)
    visibility = masks.Visibility(
        limits, queries.places(length), keys.places(size), q_segments, k_segments, None if packed else keys.lengths
    )
    return spoilt(visibility, ~finite[..., None], consecutive)[1][..., 0]
