"""Attention masks as functions of positions and segment ids, never of array shapes.

A query at position p sees a key at position s if both are in the same segment and `-left <= s - p <= right`. Causal
means right = 0. For window w=2 and five tokens (rows are queries):

    bidirectional, (2, 2)      causal, (2, 0)
        1 1 1 . .                1 . . . .
        1 1 1 1 .                1 1 . . .
        1 1 1 1 1                1 1 1 . .
        . 1 1 1 1                . 1 1 1 .
        . . 1 1 1                . . 1 1 1

The width counts visible neighbours besides the query itself, as in `jax.nn.dot_product_attention(local_window_size=)`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Window = int | tuple[int, int] | None
Band = tuple[int | None, int | None]  # visible neighbours to the left and to the right; None = no limit


def band(causal: bool, window: Window) -> Band:
    """(left, right) visible neighbours besides the query itself; None: no limit. `window=w` means (w, w), or (w, 0)
    when causal; a causal pair keeps its left side. ValueError: a negative window."""
    if window is None:
        left, right = None, None
    elif isinstance(window, int):
        left, right = window, window
    else:
        left, right = window
    if (left is not None and left < 0) or (right is not None and right < 0):
        raise ValueError(f"window={window} is negative: a window counts visible neighbours, 0 or more")
    return left, 0 if causal else right


def visible(
    q_positions: Int[Array, "*#B L"],
    k_positions: Int[Array, "*#B S"],
    q_segments: Int[Array, "*#B L"] | None,
    k_segments: Int[Array, "*#B S"] | None,
    limits: Band,
) -> Bool[Array, "*#B L S"]:
    """True where a query may see a key: in the same segment, within the limits. Padding has its own segment (0)."""
    offset = k_positions[..., None, :] - q_positions[..., :, None]
    mask = jnp.ones(offset.shape, bool)
    left, right = limits
    if left is not None:
        mask &= offset >= -left
    if right is not None:
        mask &= offset <= right
    if q_segments is not None and k_segments is not None:
        mask &= q_segments[..., :, None] == k_segments[..., None, :]
    return mask


class Visibility(NamedTuple):
    """All that the mask depends on, as `attend` passes it to its backends."""

    limits: Band
    q_positions: Int[Array, "#B L"]
    k_positions: Int[Array, "#B S"]
    q_segments: Int[Array, "#B L"] | None = None  # both or neither
    k_segments: Int[Array, "#B S"] | None = None
    k_lengths: Int[Array, " B"] | None = None  # keys of each row; the others are padding on the right

    def with_ids(self) -> "Visibility":
        """The same, with segment ids instead of lengths."""
        if self.k_lengths is None:
            return self
        k_segments = (jnp.arange(self.k_positions.shape[1]) < self.k_lengths[:, None]).astype(jnp.int32)
        q_segments = jnp.ones((1, self.q_positions.shape[1]), jnp.int32)
        return self._replace(q_segments=q_segments, k_segments=k_segments, k_lengths=None)

    def mask(self) -> Bool[Array, "#B L S"] | None:
        """True where a query may see a key; None where every query sees every key."""
        ids = self.with_ids()
        if ids.limits == (None, None) and ids.q_segments is None:
            return None
        return visible(ids.q_positions, ids.k_positions, ids.q_segments, ids.k_segments, ids.limits)
