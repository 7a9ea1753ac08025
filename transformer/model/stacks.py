"""The encoder and the decoder stack: N layers, whose attention patterns cycle over `config.attention`."""

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from transformer.config import ModelConfig, parse_pattern
from transformer.model import cache as kv
from transformer.model.embedders import PositionedInput
from transformer.model.layers import FeedForward, MultiHeadAttention, Residual, Tokens, final_norm
from transformer.model.noise import Noise
from transformer.model.positions import Bias


class Memory(NamedTuple):
    """What the decoder sees of the encoder: keys and values of each decoder layer, made once."""

    keys_values: tuple[tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]], ...]
    where: Tokens


def windows(config: ModelConfig) -> list[int | None]:
    """The window of each layer: ("window:16", "full") over three layers is [16, None, 16]."""
    return [parse_pattern(config.attention[i % len(config.attention)]) for i in range(config.num_layers)]


class Layer(nn.Module):
    """Self-attention, cross-attention where there is an encoder, feed-forward (paper, figure 1)."""

    config: ModelConfig
    causal: bool
    window: int | None
    cross: bool = False

    def setup(self) -> None:
        self.self_attention = MultiHeadAttention(self.config, self.causal, self.window)
        self.self_attention_residual = Residual(self.config)
        if self.cross:
            self.cross_attention = MultiHeadAttention(self.config)
            self.cross_attention_residual = Residual(self.config)
        self.feed_forward = FeedForward(self.config)
        self.feed_forward_residual = Residual(self.config)

    def keys_values(self, encoded: Float[Array, "B S D"]) -> tuple[Array, Array]:
        return self.cross_attention.keys_values(encoded)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        where: Tokens,
        noise: Noise | None,
        bias: Bias | None = None,
        cache: kv.Cache | None = None,
        memory: tuple[Array, Array] | None = None,
        memory_where: Tokens | None = None,
    ) -> tuple[Float[Array, "B L D"], kv.Cache | None]:
        written = None

        def self_attention(y: Array) -> Array:
            nonlocal written
            out, written = self.self_attention.itself(y, where, bias, cache)
            return out

        x = self.self_attention_residual(x, noise, self_attention)
        if memory is not None:
            assert memory_where is not None
            x = self.cross_attention_residual(
                x, noise, lambda y: self.cross_attention.across(y, memory, where, memory_where)
            )
        return self.feed_forward_residual(x, noise, self.feed_forward), written


class Stack(nn.Module):
    """N layers over embedded tokens: an encoder, a decoder (causal, cross) or a decoder-only stack (causal)."""

    config: ModelConfig
    causal: bool
    cross: bool = False

    def setup(self) -> None:
        self.input = PositionedInput(self.config, self.causal)
        self.layers = [
            Layer(self.config, self.causal, window, self.cross, name=f"layer_{i}")
            for i, window in enumerate(windows(self.config))
        ]
        self.final_norm = final_norm(self.config)

    def memory(self, encoded: Float[Array, "B S D"], where: Tokens) -> Memory:
        return Memory(tuple(layer.keys_values(encoded) for layer in self.layers), where)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        where: Tokens,
        noise: Noise | None = None,
        caches: tuple[kv.Cache, ...] | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "B L D"], tuple[kv.Cache, ...]]:
        """The stack's output, and the caches with the new tokens (none without `caches`)."""
        x, bias = self.input(x, where.positions, noise)
        written: list[Any] = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(
                x,
                where,
                noise,
                bias,
                None if caches is None else caches[i],
                None if memory is None else memory.keys_values[i],
                None if memory is None else memory.where,
            )
            written.append(cache)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x, () if caches is None else tuple(written)
