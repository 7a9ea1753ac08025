"""What a model reads to vectors, and vectors to tokens. EMBEDDERS, name -> module of what an encoder reads.

That of tokens gives a vector for each; the others are called with their input and where it stands, and give vectors
[B, L, D] and where these stand.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig
from transformer.model.layers import ACTIVATIONS, Linear, Tokens, by_rows, make_norm, weight_init
from transformer.model.noise import Dropout, Noise
from transformer.model.positions import POSITIONS, Bias, table_deviation


class TokenEmbedder(nn.Module):
    """The table of a vocabulary (paper, section 3.4), and the output of logits, tied to it or not.

    Rows have variance 1 / D, so embeddings times sqrt(D) have variance 1, and so have the logits of a normalised
    vector.
    """

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(table_deviation(config))
        shape = (config.vocab_size, config.d_model)
        self.table = self.param("table", init, shape, jnp.float32)
        if config.segment_types:
            self.segments = self.param("segments", init, (config.segment_types, config.d_model), jnp.float32)
        if not config.tied:
            self.output_table = self.param("output_table", init, shape, jnp.float32)
        if config.output_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros, (config.vocab_size,), jnp.float32)
        if config.output_transform:
            self.output_dense = Linear(config.d_model, kernel_init=weight_init(config))
            self.output_norm = make_norm(config)

    def __call__(self, tokens: Int[Array, "B L"], types: Int[Array, "B L"] | None = None) -> Float[Array, "B L D"]:
        """Vectors of the tokens; `types` says of which text of a pair each is (all of the first where it is None)."""
        # Where the table is split along D, its rows are gathered whole before they are looked up.
        x = jnp.take(nn.with_logical_constraint(self.table, ("vocabulary", None)), tokens, axis=0)
        if self.config.scale_embedding:
            x = x * self.config.d_model**0.5
        if self.config.segment_types:
            x = x + (self.segments[0] if types is None else jnp.take(self.segments, types, axis=0))
        return by_rows(x).astype(self.config.dtype)

    def features(self, x: Float[Array, "B L D"]) -> Float[Array, "B L E"]:
        """What `output_table` turns into logits; a bias is a feature that is 1."""
        if self.config.output_transform:
            x = self.output_norm(ACTIVATIONS[self.config.activation](self.output_dense(x)))
        x = x * self.config.output_scale if self.config.output_scale != 1 else x
        if self.config.output_bias:
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
        return x

    def logits(self, features: Float[Array, "B L E"]) -> Float[Array, "B L V"]:
        """In float32, of products in the type of the features."""
        table = output_table(self.variables["params"]).astype(features.dtype)
        return jnp.matmul(features, table.T, preferred_element_type=jnp.float32)


def output_table(embedder: Any) -> Float[Array, "V E"]:
    """The table whose product with `features` gives logits, of the parameters of a `TokenEmbedder`."""
    table = jnp.asarray(embedder.get("output_table", embedder["table"]))
    return jnp.concatenate([table, embedder["output_bias"][:, None]], axis=1) if "output_bias" in embedder else table


class Embedded(NamedTuple):
    x: Float[Array, "B L D"]
    where: Tokens


class ImageInput(nn.Module):
    """Patches of an image, each a vector through one matrix (Dosovitskiy et al. 2021, "ViT", equation 1), row by row;
    before them a trained vector of its own where the first place is what is pooled."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.patches = Linear(config.d_model, kernel_init=weight_init(config))
        if config.pooling != "mean":
            self.first = self.param("first", nn.initializers.normal(0.02), (config.d_model,), jnp.float32)

    def __call__(self, images: Float[Array, "B height width channels"], where: Tokens | None = None) -> Embedded:
        """`where` is not asked: patches have the places 0, 1, ... of one segment."""
        config, batch = self.config, images.shape[0]
        height, width, side = *config.image_size, config.patch_size
        x = images.astype(config.dtype).reshape(batch, height // side, side, width // side, side, config.channels)
        x = self.patches(x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * config.channels))
        if config.pooling != "mean":
            x = jnp.concatenate([jnp.broadcast_to(self.first, (batch, 1, x.shape[-1])).astype(x.dtype), x], axis=1)
        return Embedded(x, one_segment(x))


class FrameInput(nn.Module):
    """Log-mel frames through two convolutions of width 3 and stride 2, so that a vector stands for four frames
    (as in Radford et al. 2022, "Whisper", whose first stride is 1). What is padding stays 0 between them, so padding
    changes nothing."""

    config: ModelConfig

    def setup(self) -> None:
        self.first, self.second = (Linear(self.config.d_model, kernel_init=weight_init(self.config)) for _ in range(2))

    def __call__(self, frames: Float[Array, "B frames mels"], where: Tokens) -> Embedded:
        x = frames.astype(self.config.dtype)
        for convolution in (self.first, self.second):
            x = jnp.where((where.segments > 0)[..., None], x, 0)
            x = jnp.pad(x, [(0, 0), (1, 1 + x.shape[1] % 2), (0, 0)])
            x = nn.gelu(convolution(jnp.concatenate([x[:, :-2:2], x[:, 1:-1:2], x[:, 2::2]], axis=-1)))
            where = Tokens(where.positions[:, ::2] // 2, where.segments[:, ::2])
        return Embedded(x, where)


class SeriesInput(nn.Module):
    """Overlapping patches of a series of one variable, each a vector through one matrix (Nie et al. 2023, "PatchTST",
    section 3.1); the last value is repeated for one more stride, as there."""

    config: ModelConfig

    def setup(self) -> None:
        self.patches = Linear(self.config.d_model, kernel_init=weight_init(self.config))

    def __call__(self, series: Float[Array, "B time"], where: Tokens | None = None) -> Embedded:
        """`where` is not asked: patches have the places 0, 1, ... of one segment."""
        size = self.config.patch_size
        stride = self.config.patch_stride or size
        series = jnp.pad(series, [(0, 0), (0, stride)], mode="edge")
        starts = jnp.arange(0, series.shape[1] - size + 1, stride)
        x = self.patches(series[:, starts[:, None] + jnp.arange(size)].astype(self.config.dtype))
        return Embedded(x, one_segment(x))


def one_segment(x: Float[Array, "B L D"]) -> Tokens:
    """Places 0, 1, ... of one segment, nothing of it padding."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return Tokens(positions, jnp.ones_like(positions))


EMBEDDERS: dict[str, Any] = {
    "tokens": TokenEmbedder,
    "image": ImageInput,
    "frames": FrameInput,
    "series": SeriesInput,
}


class PositionedInput(nn.Module):
    """Adds the position encoding, then norm (BERT) and dropout. Encoder and decoder have one each, so learned tables
    are two."""

    config: ModelConfig
    causal: bool

    def setup(self) -> None:
        self.positions = POSITIONS[self.config.positions](self.config, self.causal)
        self.dropout = Dropout(self.config.dropout)
        if self.config.embedding_norm:
            self.norm = make_norm(self.config)

    def __call__(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], noise: Noise | None
    ) -> tuple[Float[Array, "B L D"], Bias | None]:
        """The first layer's input, and what the encoding adds to the scores of every layer."""
        x = self.positions(x, positions)
        if self.config.embedding_norm:
            x = self.norm(x)
        x = by_rows(x)
        return self.dropout(x, noise), self.positions.bias()
