"""Tokens to vectors, and back: one table for source, target and output (paper, section 3.4)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig
from transformer.model.noise import Dropout, Noise
from transformer.model.positions import POSITIONS, Bias


class TokenEmbedder(nn.Module):
    """The table of a vocabulary. Its rows have variance 1 / D, so embeddings times sqrt(D) have variance 1, and so
    have the logits of a normalised vector."""

    config: ModelConfig

    def setup(self) -> None:
        init = nn.initializers.normal(self.config.d_model**-0.5)
        self.table = self.param("table", init, (self.config.vocab_size, self.config.d_model), jnp.float32)

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        return jnp.take(self.table, tokens, axis=0) * self.config.d_model**0.5

    def logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        return x @ self.table.T


class PositionedInput(nn.Module):
    """Adds the position encoding, then dropout. Encoder and decoder have one each, so learned tables are two."""

    config: ModelConfig
    causal: bool

    def setup(self) -> None:
        self.positions = POSITIONS[self.config.positions](self.config, self.causal)
        self.dropout = Dropout(self.config.dropout)

    def __call__(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], noise: Noise | None
    ) -> tuple[Float[Array, "B L D"], Bias | None]:
        """The first layer's input, and what the encoding adds to the scores of every layer."""
        return self.dropout(self.positions(x, positions), noise), self.positions.bias()
