"""What a model reads to vectors, and vectors to tokens. EMBEDDERS, name -> module of what an encoder reads.

That of tokens gives a vector for each; the others are called with their input and where it stands, and give vectors
[B, L, D] and where these stand.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig
from transformer.model.layers import ACTIVATIONS, Linear, Norm, by_rows, weight_init
from transformer.model.noise import Dropout, Noise
from transformer.model.parameters import parameter
from transformer.model.positions import POSITIONS, Rotation, table_deviation
from transformer.model.tokens import Tokens


class TokenEmbedder(nn.Module):
    """The table of a vocabulary (paper, section 3.4), and the output of logits, tied to it or not.

    Rows have variance 1 / D, so embeddings times sqrt(D) have variance 1, and so have the logits of a normalised
    vector.
    """

    config: ModelConfig

    def setup(self) -> None:
        config, axes = self.config, ("vocabulary", "width")
        init, shape = nn.initializers.normal(table_deviation(config)), (config.vocab_size, config.d_model)
        self.table = parameter(self, "table", init, shape, axes)
        if config.segment_types:
            types = (config.segment_types, config.d_model)
            self.segments = parameter(self, "segments", init, types, ("places", "width"))
        if not config.tied:
            self.output_table = parameter(self, "output_table", init, shape, axes)
        if config.output_bias:
            self.output_bias = parameter(self, "output_bias", nn.initializers.zeros, shape[:1], axes[:1])
        if config.output_transform:
            self.output_dense = Linear(config.d_model, kernel_init=weight_init(config))
            self.output_norm = Norm(config)

    def __call__(self, tokens: Int[Array, "B L"], types: Int[Array, "B L"] | None = None) -> Float[Array, "B L D"]:
        """Vectors of the tokens; `types` says of which text of a pair each is (all of the first where it is None)."""
        # Where the table is split along D, its rows are gathered whole before they are looked up.
        x = jnp.take(nn.with_logical_constraint(self.table, ("vocabulary", None)), tokens, axis=0)
        if self.config.scale_embedding:
            x = x * self.config.d_model**0.5
        if self.config.segment_types:
            x = x + (self.segments[0] if types is None else jnp.take(self.segments, types, axis=0))
        return by_rows(x).astype(self.config.dtype)

    def features(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """What the output layer turns into logits."""
        if self.config.output_transform:
            x = self.output_norm(ACTIVATIONS[self.config.activation](self.output_dense(x)))
        return x * self.config.output_scale if self.config.output_scale != 1 else x

    def logits(self, features: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """In float32, of products in the type of the features."""
        table, bias = output_layer(self.variables["params"])
        logits = jnp.matmul(features, table.astype(features.dtype).T, preferred_element_type=jnp.float32)
        return logits if bias is None else logits + bias


class OutputLayer(NamedTuple):
    """features · table^T + bias are the logits."""

    table: Float[Array, "V D"]
    bias: Float[Array, " V"] | None


def output_layer(embedder: Any) -> OutputLayer:
    """Of the parameters of a `TokenEmbedder`; a tied one has the embedding's table."""
    return OutputLayer(embedder.get("output_table", embedder["table"]), embedder.get("output_bias"))


class TokenModel(nn.Module):
    """A family that writes tokens: it has an `embedder`, whose output layer turns its `features` into logits."""

    config: ModelConfig

    def __call__(self, *arguments: Any) -> Float[Array, "B L V"]:
        """Logits of the token after each of the target inputs; called as `features` is."""
        return self.embedder.logits(self.features(*arguments))


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
            self.first = parameter(self, "first", nn.initializers.normal(0.02), (config.d_model,), ("width",))

    def __call__(self, images: Float[Array, "B height width channels"], where: Tokens | None = None) -> Embedded:
        """`where` is not read: all patches of an image are there."""
        config, batch = self.config, images.shape[0]
        height, width, side = *config.image_size, config.patch_size
        x = images.astype(config.dtype).reshape(batch, height // side, side, width // side, side, config.channels)
        x = self.patches(x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * config.channels))
        if config.pooling != "mean":
            x = jnp.concatenate([jnp.broadcast_to(self.first, (batch, 1, x.shape[-1])).astype(x.dtype), x], axis=1)
        return Embedded(x, Tokens())


class FrameInput(nn.Module):
    """Log-mel frames through two convolutions of width 3 and stride 2, so that a vector stands for four frames
    (as in Radford et al. 2022, "Whisper", whose first stride is 1). What is padding stays 0 between them, so padding
    changes nothing. Recordings are padded on the right."""

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
    """Overlapping patches of a series of one variable, each a vector through one matrix (Nie et al. 2023, "PatchTST",
    section 3.1); the last value is repeated for one more stride, as there."""

    config: ModelConfig

    def setup(self) -> None:
        self.patches = Linear(self.config.d_model, kernel_init=weight_init(self.config))

    def __call__(self, series: Float[Array, "B time"], where: Tokens | None = None) -> Embedded:
        """`where` is not read: all patches of a series are there."""
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
    """Adds the position encoding, then norm (BERT) and dropout. Encoder and decoder have one each, so learned tables
    are two."""

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
        """The first layer's input, what rotates the queries and keys of every layer, and what changes their scores."""
        places = where.places(x.shape[1])
        x = self.positions(x, places)
        if self.config.embedding_norm:
            x = self.norm(x)
        x = by_rows(x)
        return self.dropout(x, noise), self.positions.rotation(places), self.positions.score()
