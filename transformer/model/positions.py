"""Position encodings: POSITIONS, name -> module, made from the configuration; each stack has one. An encoding may add
to the embeddings (`__call__`), rotate queries and keys (`rotation`), or change the scores of self-attention (`score`).
It depends on the positions of the tokens, never on array shapes, so that packed rows and cached decoding need no
special case."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig, head_width
from transformer.model.attention.scores import Bias
from transformer.model.parameters import parameter, rows
from transformer.platforms import target


@partial(jax.tree_util.register_dataclass, data_fields=("sin", "cos"), meta_fields=("interleaved",))
@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotates queries and keys by their positions; sines and cosines are computed once per stack. Pairs are features
    (2i, 2i+1) when interleaved, as in the paper (Su et al. 2021, "RoFormer", equation 34), otherwise (i, i + K/2), as
    in GPT-NeoX and the Hugging Face form of Llama. The two differ by a permutation of the weights' columns. Scores
    depend only on differences of positions."""

    sin: Any  # Float[Array, "*B L half"], or a placeholder while JAX flattens the pytree
    cos: Any
    interleaved: bool

    def __call__(self, x: Float[Array, "*B L H K"]) -> Float[Array, "*B L H K"]:
        """Rotates each pair of features of each head by its angle, in float32."""
        sin, cos = self.sin[..., None, :], self.cos[..., None, :]
        pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], *((-1, 2) if self.interleaved else (2, -1)))
        axis = -1 if self.interleaved else -2
        a, b = jnp.moveaxis(pairs, axis, 0)
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=axis).reshape(x.shape).astype(x.dtype)


def rotation(positions: Int[Array, "*B L"], width: int, interleaved: bool = True, theta: float = 10_000.0) -> Rotation:
    """The rotation by angles p / theta^(2i/K), for heads of `width` K features. ValueError: an odd width."""
    if width % 2:
        raise ValueError(f"rotary positions rotate pairs of features, and a head has {width}: make head_dim even")
    angle = positions[..., None].astype(jnp.float32) * _rates(width // 2, width, theta)
    return Rotation(jnp.sin(angle), jnp.cos(angle), interleaved)


class NoPositions(nn.Module):
    """No encoding; the base class of the others."""

    config: ModelConfig
    causal: bool = False

    def __call__(self, x: Float[Array, "B L D"], positions: Int[Array, "#B L"]) -> Float[Array, "B L D"]:
        return x

    def rotation(self, positions: Int[Array, "#B L"]) -> Rotation | None:
        """The rotation of queries and keys in every self-attention layer of the stack."""
        return None

    def score(self) -> Any:
        """The score function (`transformer.model.attention.scores`) of every self-attention layer of the stack, a
        pytree of its weights; or None."""
        return None


def sinusoid(positions: Int[Array, "*L"], d_model: int, interleaved: bool = True) -> Float[Array, "*L D"]:
    """The paper's encoding (Vaswani et al. 2017, section 3.5), with sines and cosines interleaved:

    PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(p / 10000^(2i/D))

    Not interleaved, all sines come before all cosines, as in Marian. An odd D has one more sine. Tensor2Tensor and its
    descendants use a different table (halves, with D/2 - 1 in the exponent).
    """
    pairs = (d_model + 1) // 2
    angle = positions[..., None].astype(jnp.float32) * _rates(pairs, d_model)
    axis = -1 if interleaved else -2
    table = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=axis)
    return table.reshape(*positions.shape, 2 * pairs)[..., :d_model]


def _rates(pairs: int, width: int, theta: float = 10_000.0) -> np.ndarray:
    """theta^(-2i/width) for i = 0, 1, ..., computed in float64, since a large position multiplies the error."""
    return (theta ** (-2 * np.arange(pairs) / width)).astype(np.float32)


class Sinusoidal(NoPositions):
    interleaved: bool = True

    def __call__(self, x: Float[Array, "B L D"], positions: Int[Array, "#B L"]) -> Float[Array, "B L D"]:
        return x + sinusoid(positions, x.shape[-1], self.interleaved).astype(x.dtype)


def table_deviation(config: ModelConfig) -> float:
    """The standard deviation of an embedding table: 1 / sqrt(D), so that rows have length 1, and tokens' rows times
    sqrt(D) variance 1; 0.02 in GPT-2's initialization."""
    return config.d_model**-0.5 if config.initialization == "xavier" else 0.02


class Learned(NoPositions):
    """One trained vector per position (paper, Table 3 E). A position below 0 or past `max_positions` raises ValueError,
    or gives NaN inside jit, where its value is not known. The commands refuse longer input before they compile."""

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], positions: Int[Array, "#B L"]) -> Float[Array, "B L D"]:
        if not isinstance(positions, jax.core.Tracer) and positions.size:
            check_length(self.config, int(np.asarray(positions).max()) + 1)
            if (least := int(np.asarray(positions).min())) < 0:
                raise ValueError(f"there is no position {least} in a learned position table: count from 0")
        init = nn.initializers.normal(table_deviation(self.config))
        table = parameter(self, "table", init, (self.config.max_positions, x.shape[-1]), ("places", "width"))
        return x + rows(table, positions).astype(x.dtype)


class Rotary(NoPositions):
    """Queries and keys rotated in pairs of features (Su et al. 2021, "RoFormer")."""

    interleaved: bool = True

    def rotation(self, positions: Int[Array, "#B L"]) -> Rotation:
        return rotation(positions, head_width(self.config), self.interleaved, self.config.rotary_theta)


def alibi_slopes(heads: int) -> np.ndarray:
    """Slopes of the heads: 2^(-8/n), 2^(-16/n), ... for n heads, a power of two (Press et al. 2022, section 3). Another
    n takes those of the power of two below, then every other one of the power of two above, as in the authors' code."""
    power = 2 ** int(math.log2(heads))
    below = 2.0 ** (-8 / power * np.arange(1, power + 1))
    above = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1, 2))
    return np.concatenate([below, above[: heads - power]]).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AlibiBias(Bias):
    """-slope · |distance|, without parameters."""

    heads: int = dataclasses.field(metadata={"static": True})

    def bias(self, q_positions: Int[Array, "*B L"], k_positions: Int[Array, "*B S"]) -> Float[Array, "*B H L S"]:
        distance = jnp.abs(k_positions[..., None, None, :] - q_positions[..., None, :, None])
        return distance.astype(jnp.float32) * -alibi_slopes(self.heads)[:, None, None]


class Alibi(NoPositions):
    """Attention with linear biases (Press et al. 2022, "Train short, test long"), symmetric when not causal."""

    def score(self) -> Bias:
        return AlibiBias(self.config.num_heads)


T5_BUCKETS, T5_FARTHEST = 32, 128


def t5_bucket(offset: Int[Array, "*shape"], causal: bool) -> Int[Array, "*shape"]:
    """The bucket of key position minus query position (Raffel et al. 2020, section 2.1), 0 to T5_BUCKETS - 1. Half of
    the buckets are for keys before the query and half for keys after it; a causal stack has all for keys before. Half
    of these hold one distance each, the others grow logarithmically up to T5_FARTHEST, and the last holds all larger
    distances."""
    buckets = T5_BUCKETS if causal else T5_BUCKETS // 2
    distance = jnp.maximum(-offset, 0) if causal else jnp.abs(offset)
    exact = buckets // 2
    # The first distance of each wider bucket. Comparing integers avoids the rounding of a logarithm.
    begins = exact * (T5_FARTHEST / exact) ** (np.arange(1, buckets - exact) / (buckets - exact))
    begins = np.ceil(begins - 1e-6).astype(np.int32)
    wide = exact + (distance[..., None] >= begins).sum(axis=-1)
    bucket = jnp.where(distance < exact, distance, wide)
    return bucket if causal else bucket + jnp.where(offset > 0, buckets, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class T5Bias(Bias):
    """A trained bias for each bucket of distance and each head."""

    table: Any  # Float[Array, "buckets H"], or a placeholder while JAX flattens the pytree
    causal: bool = dataclasses.field(metadata={"static": True})

    def bias(self, q_positions: Int[Array, "*B L"], k_positions: Int[Array, "*B S"]) -> Float[Array, "*B H L S"]:
        buckets = t5_bucket(k_positions[..., None, :] - q_positions[..., :, None], self.causal)
        if target() == "cpu":
            return jnp.moveaxis(jnp.take(self.table, buckets, axis=0), -1, -3)
        # On accelerators by a product: the gradient of `take` is a scatter, one addition at a time.
        hot = jax.nn.one_hot(buckets, T5_BUCKETS, dtype=self.table.dtype)
        return jnp.einsum("...qsb,bh->...hqs", hot, self.table, precision=lax.Precision.HIGHEST)


class T5Relative(NoPositions):
    """T5's relative positions: one table per stack, shared by its layers."""

    def setup(self) -> None:
        shape = (T5_BUCKETS, self.config.num_heads)
        init = nn.initializers.normal(self.config.d_model**-0.5)
        self.table = parameter(self, "table", init, shape, ("buckets", "bias_heads"))

    def score(self) -> Bias:
        return T5Bias(self.table, self.causal)


POSITIONS: dict[str, Callable[[ModelConfig, bool], NoPositions]] = {
    "sinusoidal": Sinusoidal,
    "sinusoidal-half": partial(Sinusoidal, interleaved=False),
    "learned": Learned,
    "rotary": Rotary,
    "rotary-half": partial(Rotary, interleaved=False),
    "alibi": Alibi,
    "t5": T5Relative,
    "none": NoPositions,
}


def longest(config: ModelConfig) -> int | None:
    """The length of the learned position table; None: any length."""
    return config.max_positions if config.positions == "learned" else None


def check_length(config: ModelConfig, length: int) -> None:
    """ValueError: a sequence is longer than the model's position table."""
    limit = longest(config)
    if limit is not None and length > limit:
        raise ValueError(
            f"a sequence of {length} tokens needs position {length - 1}, but the learned position table ends at "
            f"{limit - 1}: shorten the input, or train with model.max_positions={length} or more"
        )
