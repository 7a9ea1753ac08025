"""What a batch knows of where its tokens stand."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Tokens(NamedTuple):
    """Where the tokens of a batch [B, L] stand; a batch says as much as it has to.

    - `Tokens()`: one document a row, nothing of it padding.
    - `Tokens(lengths=n)`: right padding; the first n[b] places of row b are real.
    - `Tokens(positions, segments)`: several documents a row, packed. Each has an id of its own, 0 is padding, and
      inside a document positions are consecutive.

    Where no positions are given they are 0, 1, 2, ...
    """

    positions: Int[Array, "#B L"] | None = None
    segments: Int[Array, "#B L"] | None = None
    lengths: Int[Array, " B"] | None = None

    def places(self, length: int) -> Int[Array, "#B L"]:
        """The position of each token."""
        return jnp.arange(length, dtype=jnp.int32)[None] if self.positions is None else self.positions

    def real(self, length: int) -> Bool[Array, "#B L"]:
        """Which tokens are no padding."""
        if self.segments is not None:
            return jnp.asarray(self.segments) > 0
        if self.lengths is not None:
            return jnp.arange(length) < self.lengths[:, None]
        return jnp.ones((1, length), bool)

    def ids(self, length: int) -> Int[Array, "#B L"]:
        """The document of each token: its segment, or 1 where a row is one document, and 0 for padding."""
        return self.real(length).astype(jnp.int32) if self.segments is None else self.segments

    def whole(self, batch: int, length: int) -> "Tokens":
        """The same with the position and the document of every token of a batch [batch, length]."""
        shape = (batch, length)
        return Tokens(jnp.broadcast_to(self.places(length), shape), jnp.broadcast_to(self.ids(length), shape))
