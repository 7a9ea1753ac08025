"""The encoder and the decoder stack: N layers, whose attention patterns cycle over `config.attention`.

Layers run one after another, or scanned over stacked weights (`config.scan_layers`), with the same result: dropout is
told the layer's number, and stacked weights are made from those of single layers (`stacked`, and back: `unstacked`).
"""

import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.config import ModelConfig, parse_pattern
from transformer.model import cache as kv
from transformer.model.embedders import PositionedInput
from transformer.model.layers import FeedForward, MultiHeadAttention, Residual, Tokens, final_norm
from transformer.model.noise import Noise
from transformer.model.positions import Bias


class Memory(NamedTuple):
    """What the decoder sees of the encoder: keys and values of each decoder layer, made once."""

    keys_values: Any  # (k [B, G, S, K], v [B, G, S, M]) for each layer; scanned, for each pattern with a first axis
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
        if self.config.d_ff:
            self.feed_forward = FeedForward(self.config)
            self.feed_forward_residual = Residual(self.config)

    def keys_values(self, encoded: Float[Array, "B S D"]) -> tuple[Array, Array]:
        return jax.tree.map(lambda y: jnp.swapaxes(y, 1, 2), self.cross_attention.keys_values(encoded))

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
        return self.feed_forward_residual(x, noise, self.feed_forward) if self.config.d_ff else x, written


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
        if self.config.scan_layers and not self.is_initializing():
            over_layers = jax.vmap(lambda layer, p: layer.apply(p, encoded, method="keys_values"), (None, 0))
            pairs = zip(self._free_layers(), self._stacked(), strict=True)
            return Memory(tuple(over_layers(layer, {"params": weights}) for layer, weights in pairs), where)
        return Memory(tuple(layer.keys_values(encoded) for layer in self.layers), where)

    def memory_of_layers(self, memory: Memory) -> Memory:
        """The same with keys and values of each layer, whose arrays all begin with the row axis: for decoding."""
        period, pairs = len(self.config.attention), memory.keys_values
        if self.config.scan_layers and not self.is_initializing():
            count = range(self.config.num_layers)
            pairs = tuple(jax.tree.map(lambda y, i=i: y[i // period], pairs[i % period]) for i in count)
        return Memory(pairs, memory.where)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        where: Tokens,
        noise: Noise | None = None,
        caches: tuple[kv.Cache, ...] | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "B L D"], tuple[kv.Cache, ...]]:
        """The stack's output, and the caches with the new tokens (none without `caches`)."""
        noise = None if noise is None else noise.at("/".join(self.path))
        x, bias = self.input(x, where.positions, noise)
        memory_where = None if memory is None else memory.where

        def run(i: Any, layer: Any, x: Array, cache: Any, keys_values: Any) -> tuple[Array, Any]:
            at = None if noise is None else noise.at("layer", i)
            return layer(x, where, at, bias, cache, keys_values, memory_where)

        if self.is_initializing():
            written: list[Any] = []
            for i, layer in enumerate(self.layers):
                x, cache = run(i, layer, x, *(None if y is None else y[i] for y in (caches, _pairs(memory))))
                written.append(cache)
        else:
            x, written = self._run(run, x, caches, _pairs(memory))
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x, () if caches is None else tuple(written)

    def _run(self, run: Any, x: Array, caches: Any, keys_values: Any) -> tuple[Array, list[Any]]:
        """All layers as functions of their weights, so that they can be scanned and computed again."""
        free = self._free_layers()
        period = len(free)

        def one(j: int, i: Any, weights: Any, x: Array, cache: Any, pair: Any) -> tuple[Array, Any]:
            return run(i, lambda *args: free[j].apply({"params": weights}, *args), x, cache, pair)

        if self.config.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.config.remat == "dots" else None
            one = jax.checkpoint(one, policy=policy, static_argnums=0)
        count = self.config.num_layers
        if not self.config.scan_layers or caches is not None:
            weights = self.variables["params"]
            weights = unstacked(weights, count) if self.config.scan_layers else weights
            written = []
            for i in range(count):
                cache, pair = (None if y is None else y[i] for y in (caches, keys_values))
                x, cache = one(i % period, i, weights[f"layer_{i}"], x, cache, pair)
                written.append(cache)
            return x, written

        def some(x: Array, each: Any) -> tuple[Array, None]:
            first, weights, pairs = each
            for j in range(period):
                x, _ = one(j, first + j, weights[j], x, None, None if pairs is None else pairs[j])
            return x, None

        starts = jnp.arange(0, count, period)
        return jax.lax.scan(some, x, (starts, self._stacked(), keys_values))[0], []

    def _free_layers(self) -> list[Layer]:
        """A layer of each pattern, as a function of weights."""
        patterns = windows(self.config)[: len(self.config.attention)]
        return [Layer(self.config, self.causal, window, self.cross, parent=None) for window in patterns]

    def _stacked(self) -> tuple[Any, ...]:
        weights = self.variables["params"]
        return tuple(weights[f"layers_{j}"] for j in range(len(self.config.attention)))


def _pairs(memory: Memory | None) -> Any:
    return None if memory is None else memory.keys_values


def stacked(params: Any, period: int) -> Any:
    """Parameters with layers `layer_0`, `layer_1`, ... as those of a scanned stack: `layers_j` holds, along a first
    axis, the layers j, j + period, ..., which have one pattern."""
    if not isinstance(params, dict):
        return params
    count = _count(params)
    other = {name: stacked(value, period) for name, value in params.items() if not name.startswith("layer_")}
    of_slot = {
        f"layers_{j}": [params[f"layer_{i}"] for i in range(j, count, period)] for j in range(min(period, count))
    }
    return other | {name: jax.tree.map(lambda *xs: jnp.stack(xs), *layers) for name, layers in of_slot.items()}


def unstacked(params: Any, count: int) -> Any:
    """The inverse of `stacked`, for stacks of `count` layers."""
    if not isinstance(params, dict):
        return params
    other = {name: unstacked(value, count) for name, value in params.items() if not name.startswith("layers_")}
    period = len(params) - len(other)
    return other | {
        f"layer_{i}": jax.tree.map(lambda x, i=i: x[i // period], params[f"layers_{i % period}"])
        for i in range(count if period else 0)
    }


def _count(params: dict[str, Any]) -> int:
    return next(i for i in itertools.count() if f"layer_{i}" not in params)
