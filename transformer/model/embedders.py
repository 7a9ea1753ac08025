"""Inputs to vectors, and vectors to logits. EMBEDDERS, name -> module for an encoder's inputs. That of tokens returns
one vector per token; the others take their input and its `Tokens`, and return vectors [B, L, D] and their `Tokens`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig
from transformer.model.layers import ACTIVATIONS, Linear, Norm, by_rows, weight_init
from transformer.model.noise import Dropout, Noise
from transformer.model.parameters import parameter, rows
from transformer.model.positions import POSITIONS, Rotation, longest, table_deviation
from transformer.model.products import product
from transformer.model.tokens import Tokens

# Paths of the parameters that have a row for each token of the vocabulary.
TABLES = ("embedder/table", "embedder/output_table", "embedder/output_bias")


class TokenEmbedder(nn.Module):
    """The embedding table of a vocabulary (paper, section 3.4), and the output layer, tied to it or not. Rows have
    variance 1 / D, so embeddings times sqrt(D) have variance 1, and so do the logits of a normalised vector. Where
    `config.vocab_multiple` rounds the number of rows up, those beyond the vocabulary are 0 and stay so: no token has
    one, and there are no logits for them."""

    config: ModelConfig

    def setup(self) -> None:
        config, axes = self.config, ("vocabulary", "width")
        init, shape = nn.initializers.normal(table_deviation(config)), (table_rows(config), config.d_model)
        of_tokens = _filled_up(init, config.vocab_size)
        self.table = parameter(self, "table", of_tokens, shape, axes)
        if config.segment_types:
            types = (config.segment_types, config.d_model)
            self.segments = parameter(self, "segments", init, types, ("places", "width"))
        if not config.tied:
            self.output_table = parameter(self, "output_table", of_tokens, shape, axes)
        if config.output_bias:
            self.output_bias = parameter(self, "output_bias", nn.initializers.zeros, shape[:1], axes[:1])
        if config.output_transform:
            self.output_dense = Linear(config.d_model, kernel_init=weight_init(config))
            self.output_norm = Norm(config)

    def __call__(
        self, tokens: Int[Array, "B L"], where: Tokens, types: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Vectors of the tokens; `types` is the segment type of each: its text of a pair (default: the first). A token
        or type outside its table gives NaN, but not in padding, which is read as token 0: a NaN there would reach the
        gradients of all weights, even if nothing sees it."""
        tokens = by_rows(where.blanked(tokens))
        if self.table.shape[0] > self.config.vocab_size:
            tokens = jnp.where(tokens < self.config.vocab_size, tokens, self.table.shape[0])
        # A table that is sharded along D is gathered before the lookup.
        x = rows(nn.with_logical_constraint(self.table, ("vocabulary", None)), tokens)
        if self.config.scale_embedding:
            x = x * self.config.d_model**0.5
        if self.config.segment_types:
            x = x + (self.segments[0] if types is None else rows(self.segments, where.blanked(types)))
        return by_rows(x).astype(self.config.dtype)

    def features(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        if self.config.output_transform:
            x = self.output_norm(ACTIVATIONS[self.config.activation](self.output_dense(x)))
        return x * self.config.output_scale if self.config.output_scale != 1 else x

    def logits(self, features: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """Logits in float32, from products in the type of the features."""
        table, bias = output_layer(self.variables["params"])
        logits = product(features, table.astype(features.dtype).T)
        return (logits if bias is None else logits + bias)[..., : self.config.vocab_size]


def table_rows(config: ModelConfig) -> int:
    """Rows of the tables of a vocabulary: V, rounded up to a multiple of `config.vocab_multiple`."""
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple


def unused_parameters(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many of the parameters of a model, path -> shape, are in rows that only fill its tables up."""
    more = table_rows(config) - config.vocab_size
    return sum(more * math.prod(shapes[path][1:]) for path in TABLES if path in shapes)


def _filled_up(init: nn.initializers.Initializer, count: int) -> nn.initializers.Initializer:
    """The same first `count` rows, whatever the number of rows; the others are 0."""

    def make(key: Any, shape: Any, *dtype: Any) -> Array:
        made = init(key, (count, *shape[1:]), *dtype)
        return jnp.pad(made, [(0, shape[0] - count)] + [(0, 0)] * (len(shape) - 1))

    return make


class OutputLayer(NamedTuple):
    """logits = (features · table^T + bias) of the first `config.vocab_size` rows."""

    table: Float[Array, "V D"]
    bias: Float[Array, " V"] | None


def output_layer(embedder: Any) -> OutputLayer:
    """The output layer in the parameters of a `TokenEmbedder`; a tied one uses the embedding table."""
    return OutputLayer(embedder.get("output_table", embedder["table"]), embedder.get("output_bias"))


class TokenModel(nn.Module):
    """A family that generates tokens: the output layer of its `embedder` turns its `features` into logits."""

    config: ModelConfig

    def __call__(self, *arguments: Any) -> Float[Array, "B L V"]:
        """Logits of the token after each target input; takes the arguments of `features`."""
        return self.embedder.logits(self.features(*arguments))


class Embedded(NamedTuple):
    x: Float[Array, "B L D"]
    where: Tokens


class ImageInput(nn.Module):
    """Patches of an image in row order, each mapped to a vector by one matrix (Dosovitskiy et al. 2021, "ViT", equation
    1). A trained vector is prepended where the first position is pooled."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.patches = Linear(config.d_model, kernel_init=weight_init(config))
        if config.pooling != "mean":
            self.first = parameter(self, "first", nn.initializers.normal(0.02), (config.d_model,), ("width",))

    def __call__(self, images: Float[Array, "B height width channels"], where: Tokens | None = None) -> Embedded:
        """`where` is ignored: images have no padding."""
        config, batch = self.config, images.shape[0]
        height, width, side = *config.image_size, config.patch_size
        down, across = height // side, width // side
        x = images.astype(config.dtype).reshape(batch, down, side, across, side, config.channels)
        x = self.patches(x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, down * across, side * side * config.channels))
        if config.pooling != "mean":
            x = jnp.concatenate([jnp.broadcast_to(self.first, (batch, 1, x.shape[-1])).astype(x.dtype), x], axis=1)
        return Embedded(x, Tokens())


class FrameInput(nn.Module):
    """Log-mel frames through two convolutions of width 3 and stride 2, so that one vector stands for four frames (as in
    Radford et al. 2022, "Whisper", whose first stride is 1). Padding is on the right, and is set to 0 before each
    convolution, so that it changes nothing. ValueError: segments instead of lengths."""

    config: ModelConfig

    def setup(self) -> None:
        self.first, self.second = (Linear(self.config.d_model, kernel_init=weight_init(self.config)) for _ in range(2))

    def __call__(self, frames: Float[Array, "B frames mels"], where: Tokens) -> Embedded:
        if where.segments is not None:
            raise ValueError("recordings are padded on the right: say how long they are by Tokens(lengths=...)")
        x = frames.astype(self.config.dtype)
        for convolution in (self.first, self.second):
            x = jnp.where(where.real(x.shape[1])[..., None], x, 0)
            x = jnp.pad(x, [(0, 0), (1, 1 + x.shape[1] % 2), (0, 0)])
            x = nn.gelu(convolution(jnp.concatenate([x[:, :-2:2], x[:, 1:-1:2], x[:, 2::2]], axis=-1)))
            where = Tokens(lengths=None if where.lengths is None else -(-where.lengths // 2))
        return Embedded(x, where)


class SeriesInput(nn.Module):
    """Overlapping patches of a univariate series, each mapped to a vector by one matrix (Nie et al. 2023, "PatchTST",
    section 3.1). As there, the last value is repeated for one more stride."""

    config: ModelConfig

    def setup(self) -> None:
        self.patches = Linear(self.config.d_model, kernel_init=weight_init(self.config))

    def __call__(self, series: Float[Array, "B time"], where: Tokens | None = None) -> Embedded:
        """`where` is ignored: series have no padding."""
        size = self.config.patch_size
        stride = self.config.patch_stride or size
        series = jnp.pad(series, [(0, 0), (0, stride)], mode="edge")
        starts = jnp.arange(0, series.shape[1] - size + 1, stride)
        x = self.patches(series[:, starts[:, None] + jnp.arange(size)].astype(self.config.dtype))
        return Embedded(x, Tokens())


EMBEDDERS: dict[str, Any] = {
    "tokens": TokenEmbedder,
    "image": ImageInput,
    "frames": FrameInput,
    "series": SeriesInput,
}


class PositionedInput(nn.Module):
    """Adds the position encoding, then norm (BERT) and dropout. Encoder and decoder have one each, with separate
    tables."""

    config: ModelConfig
    causal: bool

    def setup(self) -> None:
        self.positions = POSITIONS[self.config.positions](self.config, self.causal)
        self.dropout = Dropout(self.config.dropout)
        if self.config.embedding_norm:
            self.norm = Norm(self.config)

    def __call__(
        self, x: Float[Array, "B L D"], where: Tokens, noise: Noise | None
    ) -> tuple[Float[Array, "B L D"], Rotation | None, Any]:
        """The first layer's input, and the rotation and the score function of every self-attention layer."""
        places = where.places(x.shape[1])
        # Padding may be longer than a table, and is at its position 0.
        x = self.positions(x, places if longest(self.config) is None else where.blanked(places))
        if self.config.embedding_norm:
            x = self.norm(x)
        x = by_rows(x)
        return self.dropout(x, noise), self.positions.rotation(places), self.positions.score()
