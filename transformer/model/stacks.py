"""The encoder and the decoder stack: N layers, whose attention patterns cycle over `config.attention`. Layers run one
by one, or scanned over stacked weights (`config.scan_layers`). The results are equal: dropout depends on the layer's
number, and stacked weights are made from single layers (`stacked`; the inverse is `unstacked`)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.config import ModelConfig, parse_pattern
from transformer.model import cache as kv
from transformer.model.attention.marks import put
from transformer.model.attention.scores import Score
from transformer.model.embedders import PositionedInput
from transformer.model.finite import cleaned, memory_finite, seen_finite
from transformer.model.layers import FeedForward, MultiHeadAttention, Norm, Residual
from transformer.model.noise import Noise
from transformer.model.parameters import Names
from transformer.model.positions import Rotation
from transformer.model.remat import REMAT
from transformer.model.tokens import Tokens
from transformer.platforms import length_shards


class Encoded(NamedTuple):
    """An encoder's output, the input of cross-attention."""

    x: Float[Array, "B S D"]
    where: Tokens


# The input of cross-attention: the encoder's output, or in decoding the layer's keys and values, computed once.
Memory = Encoded | kv.Kept


def windows(config: ModelConfig) -> list[int | None]:
    """The window of each layer: ("window:16", "full") over three layers gives [16, None, 16]."""
    return [parse_pattern(config.attention[i % len(config.attention)]) for i in range(config.num_layers)]


class Layer(nn.Module):
    """Self-attention, cross-attention (if there is an encoder) and feed-forward (paper, figure 1)."""

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

    def kept(self, encoded: Encoded) -> kv.Kept:
        """The keys and values of cross-attention, in the layout for decoding."""
        return kv.Keys(*self.cross_attention.keys_values(encoded.x), encoded.where).kept()

    def __call__(
        self,
        x: Float[Array, "B L D"],
        where: Tokens,
        noise: Noise | None,
        rotation: Rotation | None = None,
        score: Score | None = None,
        cache: kv.Cache | None = None,
        memory: Memory | None = None,
        finite: bool = False,
    ) -> tuple[Float[Array, "B L D"], kv.Cache | None]:
        """The residual stream after the layer, and the updated cache. `finite`: x and an encoder's output are known to
        be finite."""
        residual = self.self_attention_residual
        y, cache = self.self_attention(residual.enter(x), where, rotation, score, cache, finite)
        x = residual.leave(x, y, noise)
        if self.cross and memory is not None:
            residual = self.cross_attention_residual
            if isinstance(memory, Encoded):
                keys = kv.Keys(*self.cross_attention.keys_values(memory.x, finite), memory.where)
            else:
                keys = memory.keys()
            x = residual.leave(x, self.cross_attention.cross(residual.enter(x), where, keys, finite), noise)
        if self.config.d_ff:
            residual = self.feed_forward_residual
            x = residual.leave(x, self.feed_forward(residual.enter(x)), noise)
        return x, cache


class Stack(nn.Module):
    """N layers over embedded tokens: an encoder, a decoder (causal, cross) or a decoder-only stack (causal). The
    parameters of scanned stacks come from `transformer.model.families.init`."""

    config: ModelConfig
    causal: bool
    cross: bool = False

    def setup(self) -> None:
        self.input = PositionedInput(self.config, self.causal)
        if not self.config.scan_layers:
            self.layers = [self._layer(window, name=f"layer_{i}") for i, window in enumerate(windows(self.config))]
        self.final_norm = Norm(self.config) if self.config.norm == "pre" else None  # post-norm layers end with a norm

    def _layer(self, window: int | None, **place: Any) -> Layer:
        remat = self.config.remat
        kind = Layer if remat == "none" else nn.remat(Layer, policy=REMAT[remat], static_argnums=(8,))
        return kind(self.config, self.causal, window, self.cross, **place)

    def _patterns(self) -> list[Layer]:
        """One unbound layer per attention pattern, for scanned stacks."""
        return [self._layer(window, parent=None) for window in windows(self.config)[: len(self.config.attention)]]

    def kept(self, encoded: Encoded) -> tuple[kv.Kept, ...]:
        """The keys and values of every layer's cross-attention, for decoding."""
        return tuple(layer(encoded, method="kept") for layer in self._single())

    def __call__(
        self,
        x: Float[Array, "B L D"],
        where: Tokens,
        noise: Noise | None = None,
        caches: tuple[kv.Cache, ...] | None = None,
        memory: Encoded | tuple[kv.Kept, ...] | None = None,
    ) -> tuple[Float[Array, "B L D"], tuple[kv.Cache, ...]]:
        """The stack's output, and the updated caches (empty without `caches`)."""
        noise = None if noise is None else noise.at("/".join(self.path))
        x, rotation, score = self.input(x, where, noise)
        # Where the length is split over devices, what a layer sees comes from its neighbours, and is marked.
        clean = caches is None and length_shards() == 1 and (memory is None or isinstance(memory, Encoded))
        if clean:
            x, finite = cleaned(x)
            if isinstance(memory, Encoded):
                memory_x, of_memory = cleaned(memory.x)
                finite &= memory_finite(of_memory, memory.where, where, x.shape[1])
                memory = memory._replace(x=memory_x)
            finite = seen_finite(finite, where, self.causal, windows(self.config))

        def run(layer: Callable[..., Any], i: Any, x: Array, cache: Any = None) -> tuple[Array, Any]:
            at = None if noise is None else noise.at("layer", i)
            seen = memory if memory is None or isinstance(memory, Encoded) else memory[i]
            return layer(x, where, at, rotation, score, cache, seen, clean)

        if self.config.scan_layers and caches is None:
            x = self._scanned(run, x)
        else:
            written = []
            for i, layer in enumerate(self._single()):
                x, cache = run(layer, i, x, None if caches is None else caches[i])
                written.append(cache)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if clean:
            x = put(finite[..., None], x, jnp.nan)
        return x, () if caches is None else tuple(written)

    def _scanned(self, run: Callable[..., Any], x: Array) -> Array:
        """A scan over the stacked weights; its body is one period of patterns."""
        patterns = self._patterns()

        def period(x: Array, each: tuple[Array, list[Any]]) -> tuple[Array, None]:
            first, weights = each
            for j, layer in enumerate(patterns):
                x, _ = run(_function(layer, weights[j]), first + j, x)
            return x, None

        starts = jnp.arange(0, self.config.num_layers, len(patterns))
        return jax.lax.scan(period, x, (starts, [self._weights(j) for j in range(len(patterns))]))[0]

    def _single(self) -> list[Callable[..., Any]]:
        """Each layer as a function: a bound module, or an unbound one with its slice of the stacked weights."""
        if not self.config.scan_layers:
            return [_function(layer) for layer in self.layers]
        patterns, parts = (
            self._patterns(),
            [divmod(i, len(self.config.attention)) for i in range(self.config.num_layers)],
        )
        return [_function(patterns[j], jax.tree.map(lambda y, n=n: y[n], self._weights(j))) for n, j in parts]

    def _weights(self, j: int) -> Any:
        return self.variables["params"][f"layers_{j}"]


def _function(layer: Layer, weights: Any = None) -> Callable[..., Any]:
    """A layer as a function of its arguments, with its own weights or the given ones."""
    if weights is None:
        return lambda *arguments, method="__call__": getattr(layer, method)(*arguments)
    return lambda *arguments, method="__call__": layer.apply({"params": weights}, *arguments, method=method)


def stacked(params: Any, period: int) -> Any:
    """The parameters `layer_0`, `layer_1`, ... as those of a scanned stack: `layers_j` stacks the layers j, j + period,
    ..., which share one pattern, along a new first axis."""
    if not isinstance(params, dict):
        return params
    count = _count(params)
    other = {name: stacked(value, period) for name, value in params.items() if not name.startswith("layer_")}
    of_slot = {
        f"layers_{j}": [params[f"layer_{i}"] for i in range(j, count, period)] for j in range(min(period, count))
    }
    return other | {name: jax.tree.map(lambda *xs: jnp.stack(xs), *layers) for name, layers in of_slot.items()}


def stacked_axes(path: str, names: Names, period: int) -> tuple[str, Names]:
    """A parameter's path and axis names in a scanned stack, from those in a single layer."""
    parts = path.split("/")
    for place, part in enumerate(parts):
        if part.startswith("layer_"):
            parts[place] = f"layers_{int(part.removeprefix('layer_')) % period}"
            return "/".join(parts), ("layers", *names)
    return path, names


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
