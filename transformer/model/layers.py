"""The pieces of a layer: multi-head attention, feed-forward, and the residual around both."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig, head_width
from transformer.model import cache as kv
from transformer.model.attention import attend, choose, masks
from transformer.model.noise import Dropout, Noise
from transformer.model.positions import POSITIONS, Bias

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "silu": nn.silu,
}


class Tokens(NamedTuple):
    """Where the tokens of a batch stand. Segment 0 is padding; positions restart in every segment."""

    positions: Int[Array, "B L"]
    segments: Int[Array, "B L"]


def weight_init(config: ModelConfig, into_residual: bool = False) -> nn.initializers.Initializer:
    """Xavier uniform, or GPT-2's: normal(0.02), divided by sqrt(2 N) for what is added to the residual stream."""
    if config.initialization == "xavier":
        return nn.initializers.xavier_uniform()
    return nn.initializers.normal(0.02 / (2 * config.num_layers) ** 0.5 if into_residual else 0.02)


class Linear(nn.Module):
    """x W + b over the last axis. Tokens are laid out as one matrix: on two cores the backward pass of
    [256, 16, 128] x [128, 128] took 2.3 ms so, against 4.2 ms with the batch axes left apart.

    Weights are kept in float32, and computed with in the type of x."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        out = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype)).reshape(*x.shape[:-1], self.features)
        if not self.use_bias:
            return out
        return out + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(x.dtype)


def value_width(config: ModelConfig) -> int:
    """M, the width of a head's values."""
    return config.value_dim or head_width(config)


def key_heads(config: ModelConfig) -> int:
    """G, the heads of keys and values: H unless they are grouped."""
    return config.num_kv_heads or config.num_heads


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1 ... head_H) W_O (paper, section 3.2.2), without biases unless asked for.

    With fewer heads of keys and values than of queries, each serves several (Ainslie et al. 2023, "GQA").
    """

    config: ModelConfig
    causal: bool = False
    window: int | None = None

    def setup(self) -> None:
        config = self.config
        linear = partial(Linear, use_bias=config.attention_bias)
        self.query = linear(config.num_heads * head_width(config), kernel_init=weight_init(config))
        self.key = linear(key_heads(config) * head_width(config), kernel_init=weight_init(config))
        self.value = linear(key_heads(config) * value_width(config), kernel_init=weight_init(config))
        self.out = linear(config.d_model, kernel_init=weight_init(config, into_residual=True))

    def keys_values(self, x: Float[Array, "B S D"]) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G M"]]:
        split = (*x.shape[:2], key_heads(self.config), -1)
        return self.key(x).reshape(split), self.value(x).reshape(split)

    def itself(
        self, x: Float[Array, "B L D"], where: Tokens, bias: Bias | None = None, cache: kv.Cache | None = None
    ) -> tuple[Float[Array, "B L D"], kv.Cache | None]:
        """Self-attention; with a cache, of the new tokens over all tokens so far."""
        k, v = self.keys_values(x)
        new = kv.Keys(self.turn(k, where.positions), v, where.positions, where.segments)
        seen, cache = (new, None) if cache is None else kv.extend(cache, new)
        q = self.turn(self.queries(x), where.positions)
        # Without a cache, positions are consecutive inside a segment: batches are made so.
        return self._attend(q, seen, where, bias, consecutive=cache is None), cache

    def across(
        self,
        x: Float[Array, "B L D"],
        memory: tuple[Float[Array, "B G S K"], Float[Array, "B G S M"]],
        where: Tokens,
        memory_where: Tokens,
    ) -> Float[Array, "B L D"]:
        """Cross-attention over keys and values of the encoder, made once and kept heads before slots; every position is
        seen."""
        k, v = (jnp.swapaxes(y, 1, 2) for y in memory)
        return self._attend(self.queries(x), kv.Keys(k, v, *memory_where), where, None, consecutive=False)

    def queries(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        return self.query(x).reshape(*x.shape[:2], self.config.num_heads, -1)

    def turn(self, x: Float[Array, "B L H K"], positions: Int[Array, "B L"]) -> Float[Array, "B L H K"]:
        return POSITIONS[self.config.positions].turn(x, positions)

    def _attend(self, q: Array, keys: kv.Keys, where: Tokens, bias: Bias | None, consecutive: bool) -> Array:
        limits = masks.band(self.causal, self.window)
        choice = choose(q, keys.k, keys.v, limits, bias=bias, segments=True, consecutive=consecutive)
        out = self.heads(q, keys, where, bias, choice.backend)
        return self.out(out.reshape(*q.shape[:2], -1))

    def heads(
        self, q: Float[Array, "B L H K"], keys: kv.Keys, where: Tokens, bias: Bias | None, backend: str
    ) -> Float[Array, "B L H M"]:
        """head_1 ... head_H, before W_O; `transformer.analysis` looks inside a model here."""
        return attend(
            q,
            keys.k,
            keys.v,
            causal=self.causal,
            window=self.window,
            q_positions=where.positions,
            k_positions=keys.positions,
            q_segments=where.segments,
            k_segments=keys.segments,
            bias=bias,
            scale=None if self.config.scale_attention else 1.0,
            backend=backend,
        )


class FeedForward(nn.Module):
    """FFN(x) = act(x W_1 + b_1) W_2 + b_2 (paper, equation 2, with max(0, x) for act), or, gated, (act(x W_g + b_g) *
    (x W_1 + b_1)) W_2 + b_2 (Shazeer 2020, "GLU variants improve Transformer", equation 6)."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        linear = partial(Linear, use_bias=config.feed_forward_bias)
        self.inner = linear(config.d_ff, kernel_init=weight_init(config))
        if config.gated:
            self.gate = linear(config.d_ff, kernel_init=weight_init(config))
        self.outer = linear(config.d_model, kernel_init=weight_init(config, into_residual=True))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        act = ACTIVATIONS[self.config.activation]
        return self.outer(act(self.gate(x)) * self.inner(x) if self.config.gated else act(self.inner(x)))


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016), or RMSNorm (Zhang & Sennrich 2019): x / sqrt(mean(x^2) + eps), times a scale.

    Computed in float32 (Flax does, whatever the type of the result)."""
    kinds = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    return kinds[config.norm_type](epsilon=config.norm_eps, dtype=config.dtype)


def by_rows(x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """The residual stream; where a step runs on many devices, each holds its rows of it, whole."""
    return nn.with_logical_constraint(x, ("rows", None, None))


class Residual(nn.Module):
    """x + Dropout(f(x)), normalised after ("post", the paper, section 5.4) or before f ("pre")."""

    config: ModelConfig

    def setup(self) -> None:
        self.norm = make_norm(self.config)
        self.dropout = Dropout(self.config.dropout)

    def __call__(self, x: Array, noise: Noise | None, f: Callable[[Array], Array]) -> Array:
        if self.config.norm == "pre":
            return by_rows(x + self.dropout(f(self.norm(x)), noise))
        return by_rows(self.norm(x + self.dropout(f(x), noise)))


def final_norm(config: ModelConfig) -> nn.Module | None:
    """Pre-norm stacks end in a norm of their own; post-norm stacks have just had one."""
    return make_norm(config) if config.norm == "pre" else None
