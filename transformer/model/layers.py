"""The parts of a layer: linear maps, norms, multi-head attention, feed-forward, and residual connections."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from transformer.config import ModelConfig, head_width
from transformer.errors import UserError
from transformer.model import cache as kv
from transformer.model.attention import attend
from transformer.model.attention.marks import marked
from transformer.model.attention.scores import Score
from transformer.model.noise import Dropout, Noise
from transformer.model.parameters import parameter
from transformer.model.positions import Rotation
from transformer.model.products import product
from transformer.model.tokens import Tokens
from transformer.platforms import length_shards, tuned


def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """x · Φ(x) (Hendrycks & Gimpel 2016), at least in float32. By erf: JAX's own is by erfc, which costs XLA's CPU
    compiler an exponential and two passes more. Where Φ is below 1e-7 the result is 0."""
    wide_x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide_x * (0.5 + 0.5 * lax.erf(wide_x * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": gelu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "silu": nn.silu,
}


def weight_init(config: ModelConfig, into_residual: bool = False) -> nn.initializers.Initializer:
    """Xavier uniform, or GPT-2's: normal(0.02), divided by sqrt(2 N) for weights into the residual stream."""
    if config.initialization == "xavier":
        return nn.initializers.xavier_uniform()
    return nn.initializers.normal(0.02 / (2 * config.num_layers) ** 0.5 if into_residual else 0.02)


class Linear(nn.Module):
    """x W + b over the last axis. The batch axes are flattened into one: on two cores the backward pass of [256, 16,
    128] x [128, 128] then took 2.3 ms, against 4.2 ms with separate batch axes. Weights are stored in float32 and cast
    to the type of x; `wide` results are in float32. `axes` names the kernel's axes."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    axes: tuple[str, str] = ("in", "out")
    wide: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.axes)
        multiply = product if self.wide else jnp.matmul
        flat = x if length_shards() > 1 else x.reshape(-1, x.shape[-1])  # two split axes do not become one
        out = multiply(flat, kernel.astype(x.dtype)).reshape(*x.shape[:-1], self.features)
        if not self.use_bias:
            return out
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), self.axes[1:])
        return out + bias.astype(out.dtype)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016): (x - mean) / sqrt(variance + eps), times a scale, plus a bias; or RMSNorm (Zhang &
    Sennrich 2019): x / sqrt(mean(x^2) + eps), times a scale. Computed in float32. The variance is the mean of (x -
    mean)^2 in a second pass, because E[x^2] - E[x]^2 loses all digits where the mean is large."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        centred, width = self.config.norm_type == "layer", (x.shape[-1],)
        y = x.astype(jnp.float32)
        if centred:
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * lax.rsqrt((y * y).mean(axis=-1, keepdims=True) + self.config.norm_eps)
        y = y * parameter(self, "scale", nn.initializers.ones, width, ("model",))
        if centred:
            y = y + parameter(self, "bias", nn.initializers.zeros, width, ("model",))
        return y.astype(self.config.dtype)


def value_width(config: ModelConfig) -> int:
    """M, the width of a head's values."""
    return config.value_dim or head_width(config)


def key_heads(config: ModelConfig) -> int:
    """G, the number of key/value heads: H unless they are grouped."""
    return config.num_kv_heads or config.num_heads


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1 ... head_H) W_O (paper, section 3.2.2), by default without biases. `__call__`
    is self-attention, `cross` is cross-attention. With fewer key/value heads than query heads, each serves a group of
    query heads (Ainslie et al. 2023, "GQA")."""

    config: ModelConfig
    causal: bool = False
    window: int | None = None

    def setup(self) -> None:
        config, linear = self.config, partial(Linear, use_bias=self.config.attention_bias)
        init, keys = weight_init(config), key_heads(config)
        self.query = linear(config.num_heads * head_width(config), kernel_init=init, axes=("model", "heads"))
        self.key = linear(keys * head_width(config), kernel_init=init, axes=("model", "key_heads"))
        self.value = linear(keys * value_width(config), kernel_init=init, axes=("model", "key_heads"))
        self.out = linear(config.d_model, kernel_init=weight_init(config, into_residual=True), axes=("heads", "model"))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        where: Tokens,
        rotation: Rotation | None = None,
        score: Score | None = None,
        cache: kv.Cache | None = None,
        finite: bool = False,
    ) -> tuple[Float[Array, "B L D"], kv.Cache | None]:
        """Self-attention. With a cache, new tokens attend to all tokens so far, and the cache is updated. `finite`: x
        is known to be finite."""
        q, (k, v) = self._queries(x), self.keys_values(x, finite)
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        keys = kv.Keys(k, v, where)
        if cache is not None:
            keys, cache = kv.extend(cache, keys)
        # In a cache, queries and keys differ in the offset from index to position.
        consecutive = cache is None and where.consecutive
        return self._merged(self.heads(q, keys, where, score, consecutive=consecutive, finite=finite)), cache

    def cross(
        self, x: Float[Array, "B L D"], where: Tokens, keys: kv.Keys, finite: bool = False
    ) -> Float[Array, "B L D"]:
        """Cross-attention over the encoder's keys and values, without a causal mask. `finite`: they and x are."""
        return self._merged(self.heads(self._queries(x), keys, where, None, consecutive=False, finite=finite))

    def keys_values(
        self, x: Float[Array, "B S D"], finite: bool = False
    ) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G M"]]:
        """Keys and values, marked where they are not finite (`transformer.model.attention.marks`), unless x is known to
        be `finite`."""
        config, of_heads = self.config, (*x.shape[:2], key_heads(self.config))
        k = self.key(x).reshape(*of_heads, head_width(config))
        v = self.value(x).reshape(*of_heads, value_width(config))
        return (k, v) if finite else marked(k, v)

    def _queries(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        return self.query(x).reshape(*x.shape[:2], self.config.num_heads, head_width(self.config))

    def _merged(self, heads: Float[Array, "B L H M"]) -> Float[Array, "B L D"]:
        return self.out(heads.reshape(*heads.shape[:2], heads.shape[2] * heads.shape[3]))

    def heads(
        self,
        q: Float[Array, "B L H K"],
        keys: kv.Keys,
        where: Tokens,
        score: Score | None,
        consecutive: bool,
        finite: bool,
        backend: str = "auto",
    ) -> Float[Array, "B L H M"]:
        """head_1 ... head_H, before W_O; `transformer.analysis` intercepts this method."""
        packed = where.segments is not None or keys.where.segments is not None
        return attend(
            q,
            keys.k,
            keys.v,
            causal=self.causal,
            window=self.window,
            q_positions=where.positions,
            k_positions=keys.where.positions,
            q_segments=where.ids(q.shape[1]) if packed else None,
            k_segments=keys.where.ids(keys.k.shape[1]) if packed else None,
            k_lengths=None if packed else keys.where.lengths,
            consecutive=consecutive,
            score=score,
            scale=None if self.config.scale_attention else 1.0,
            marked=True,
            finite=finite,
            backend=backend,
        )


class FeedForward(nn.Module):
    """FFN(x) = act(x W_1 + b_1) W_2 + b_2 (paper, equation 2, with max(0, x) for act), or gated: (act(x W_g + b_g) * (x
    W_1 + b_1)) W_2 + b_2 (Shazeer 2020, "GLU variants improve Transformer", equation 6)."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        linear = partial(Linear, use_bias=config.feed_forward_bias)
        self.inner = linear(config.d_ff, kernel_init=weight_init(config), axes=("model", "inner"))
        if config.gated:
            self.gate = linear(config.d_ff, kernel_init=weight_init(config), axes=("model", "inner"))
        self.outer = linear(
            config.d_model, kernel_init=weight_init(config, into_residual=True), axes=("inner", "model")
        )

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        act = ACTIVATIONS[self.config.activation]
        act = jax.checkpoint(act) if tuned().activations_again else act
        return self.outer(act(self.gate(x)) * self.inner(x) if self.config.gated else act(self.inner(x)))


def by_rows(x: Shaped[Array, "B L *D"]) -> Shaped[Array, "B L *D"]:
    """Tokens or the residual stream, sharded over devices by rows, and by positions where `mesh.sequence` is above 1.
    UserError: the positions do not divide."""
    if x.shape[1] % (devices := length_shards()):
        raise UserError(
            f"a row of {x.shape[1]} positions does not divide over mesh.sequence={devices}: change either (buckets, "
            "patches and the vector that is prepended, frames / 4), or set mesh.sequence=1"
        )
    return nn.with_logical_constraint(x, ("rows", "length", *(None,) * (x.ndim - 2)))


class Residual(nn.Module):
    """x + Dropout(f(x)), normalised after ("post", the paper, section 5.4) or before f ("pre"). A layer writes `y =
    f(residual.enter(x))`, then `residual.leave(x, y, noise)`. Parallel sublayers can share one `enter`; a norm or scale
    of y belongs in `leave`."""

    config: ModelConfig

    def setup(self) -> None:
        self.norm = Norm(self.config)
        self.dropout = Dropout(self.config.dropout)

    def enter(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.norm(x) if self.config.norm == "pre" else x

    def leave(self, x: Float[Array, "B L D"], y: Float[Array, "B L D"], noise: Noise | None) -> Float[Array, "B L D"]:
        """The residual stream after the sublayer's output y is added."""
        x = x + self.dropout(y, noise)
        return by_rows(x if self.config.norm == "pre" else self.norm(x))
