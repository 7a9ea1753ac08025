"""The positions, documents and padding of a batch."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Tokens(NamedTuple):
    """The positions, documents and padding of tokens [B, L]. Without positions, they are 0, 1, 2, ...

    - `Tokens()`: one document per row, no padding.
    - `Tokens(lengths=n)`: right padding after the first n[b] tokens of row b.
    - `Tokens(positions, segments)`: rows of several documents, in any order. Each has its own id, and 0 is padding.
      `PackedTokens` is the same where positions are known to count the tokens of a document one by one.
    """

    positions: Int[Array, "#B L"] | None = None
    segments: Int[Array, "#B L"] | None = None
    lengths: Int[Array, " B"] | None = None

    @property
    def consecutive(self) -> bool:
        """Whether it is known, also where values are traced, that within a document positions grow by one from each
        token to the next in the row. So windows can be cut by index."""
        return self.positions is None

    def places(self, length: int) -> Int[Array, "#B L"]:
        return jnp.arange(length, dtype=jnp.int32)[None] if self.positions is None else self.positions

    def real(self, length: int) -> Bool[Array, "#B L"]:
        """Which tokens are not padding."""
        if self.segments is not None:
            return jnp.asarray(self.segments) > 0
        if self.lengths is not None:
            return jnp.arange(length) < self.lengths[:, None]
        return jnp.ones((1, length), bool)

    def blanked(self, x: Int[Array, "#B L"]) -> Int[Array, "#B L"]:
        """Numbers of the tokens, such as their ids or positions, with 0 for padding."""
        padded = self.segments is not None or self.lengths is not None
        return jnp.where(self.real(x.shape[1]), x, 0) if padded else x

    def ids(self, length: int) -> Int[Array, "#B L"]:
        """The document of each token: its segment, or 1 in a row of one document; 0 for padding."""
        return (self.real(length) if self.segments is None else jnp.asarray(self.segments)).astype(jnp.int32)

    def whole(self, batch: int, length: int) -> "Tokens":
        """The same with explicit positions and documents of every token of a batch [batch, length]."""
        shape = (batch, length)
        return Tokens(jnp.broadcast_to(self.places(length), shape), jnp.broadcast_to(self.ids(length), shape))


class PackedTokens(Tokens):
    """The `Tokens` of packed rows: a document's tokens stand side by side, and their positions grow by one. The caller
    promises it, because positions that are traced by `jax.jit` cannot be checked."""

    __slots__ = ()

    @property
    def consecutive(self) -> bool:
        return True
