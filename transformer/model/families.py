"""The model families: FAMILIES, and `build(config)`. Each composes an embedder with stacks. Every family is called with
the arrays of a batch of its task. Models that generate tokens return logits. Their `features` stop before the output
layer (`output_layer(params)`), for a loss that never materializes all logits. For decoding, `start(...)` gives the
caches, and `step(tokens, where, caches)` the new tokens' logits and updated caches."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer.config import ModelConfig, check_model, head_width
from transformer.errors import UserError
from transformer.model import cache as kv
from transformer.model import embedders
from transformer.model.embedders import EMBEDDERS, TokenEmbedder, TokenModel
from transformer.model.layers import ACTIVATIONS, Linear, key_heads, value_width, weight_init
from transformer.model.noise import Noise
from transformer.model.parameters import Names, paths
from transformer.model.positions import POSITIONS
from transformer.model.recurrent import CELLS, RecurrentEncoderDecoder, RecurrentLanguageModel
from transformer.model.remat import REMAT
from transformer.model.stacks import Encoded, Stack, stacked, stacked_axes, windows
from transformer.model.tokens import Tokens


class Decoding(NamedTuple):
    """The state of decoding."""

    caches: tuple[kv.Cache, ...]
    memory: tuple[kv.Kept, ...] | None = None  # per layer, the keys and values of cross-attention


def _empty_caches(config: ModelConfig, batch: int, slots: int) -> tuple[kv.Cache, ...]:
    """An empty cache for each layer; a window's cache holds only the tokens that the window sees."""
    widths = key_heads(config), head_width(config), value_width(config)
    return tuple(kv.empty(batch, slots, *widths, window, config.dtype) for window in windows(config))


class AttentiveModel(TokenModel):
    """A family whose decoder is a stack of attention layers."""

    def step(self, tokens: Int[Array, "B L"], where: Tokens, state: Decoding) -> tuple[Float[Array, "B L V"], Decoding]:
        decoded, caches = self.decoder(self.embedder(tokens, where), where, None, state.caches, state.memory)
        return self.embedder.logits(self.embedder.features(decoded)), Decoding(caches, state.memory)


class EncoderDecoder(AttentiveModel):
    """The paper's model (Vaswani et al. 2017, figure 1): encoder, decoder with cross-attention, one shared table. The
    encoder may read other inputs than tokens (`config.inputs`), such as frames of speech."""

    def setup(self) -> None:
        self.embedder = TokenEmbedder(self.config)
        if self.config.inputs != "tokens":
            self.front = EMBEDDERS[self.config.inputs](self.config)
        self.encoder = Stack(self.config, causal=False)
        self.decoder = Stack(self.config, causal=True, cross=True)

    def encode(self, inputs: Array, where: Tokens, noise: Noise | None = None) -> Encoded:
        if self.config.inputs == "tokens":
            x = self.embedder(inputs, where)
        else:
            x, where = self.front(inputs, where)
        return Encoded(self.encoder(x, where, noise)[0], where)

    def features(
        self,
        inputs: Array,
        inputs_where: Tokens,
        target_inputs: Int[Array, "B L"],
        targets_where: Tokens,
        noise: Noise | None = None,
    ) -> Float[Array, "B L D"]:
        """The input of the output layer for each of `target_inputs`, which begin with BOS."""
        memory = self.encode(inputs, inputs_where, noise)
        x, _ = self.decoder(self.embedder(target_inputs, targets_where), targets_where, noise, None, memory)
        return self.embedder.features(x)

    def start(self, inputs: Array, where: Tokens, slots: int) -> Decoding:
        """Encodes the inputs once, and allocates caches for `slots` target tokens."""
        memory = self.decoder.kept(self.encode(inputs, where))
        return Decoding(_empty_caches(self.config, inputs.shape[0], slots), memory)


class DecoderOnly(AttentiveModel):
    """A causal language model: the decoder without cross-attention."""

    def setup(self) -> None:
        self.embedder = TokenEmbedder(self.config)
        self.decoder = Stack(self.config, causal=True)

    def features(
        self, target_inputs: Int[Array, "B L"], targets_where: Tokens, noise: Noise | None = None
    ) -> Float[Array, "B L D"]:
        x = self.embedder(target_inputs, targets_where)
        return self.embedder.features(self.decoder(x, targets_where, noise)[0])

    def start(self, batch: int, slots: int) -> Decoding:
        return Decoding(_empty_caches(self.config, batch, slots))


class EncoderOnly(nn.Module):
    """An encoder of tokens, images or frames with one output vector per position. With `config.num_classes` above 0 it
    classifies the whole input, else it predicts the token at each position (Devlin et al. 2019, "BERT")."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        if config.inputs == "tokens":
            self.embedder = TokenEmbedder(config)
        else:
            self.front = EMBEDDERS[config.inputs](config)
        self.encoder = Stack(config, causal=False)
        if config.pooling == "pooler":
            self.pooler = Linear(config.d_model, kernel_init=weight_init(config))
        if config.num_classes:
            self.head = Linear(config.num_classes, kernel_init=nn.initializers.zeros, wide=True)

    def encode(
        self, inputs: Array, where: Tokens | None, noise: Noise | None = None, types: Int[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B L D"], Tokens]:
        """The encoder's output and its `Tokens`. Without `where` there is no padding, as in images. `types` is the
        segment type of each token: which text of a pair it belongs to."""
        where = Tokens() if where is None else where
        if self.config.inputs == "tokens":
            x = self.embedder(inputs, where, types)
        else:
            x, where = self.front(inputs, where)
        return self.encoder(x, where, noise)[0], where

    def pooled(self, x: Float[Array, "B L D"], where: Tokens) -> Float[Array, "B D"]:
        vector = POOLINGS[self.config.pooling](x, where.real(x.shape[1]))
        return jnp.tanh(self.pooler(vector)) if self.config.pooling == "pooler" else vector

    def features(
        self, inputs: Array, where: Tokens | None, noise: Noise | None = None, types: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """The input of the output layer at each position of a text."""
        x, where = self.encode(inputs, where, noise, types)
        if self.config.pooling == "pooler":
            self.pooled(x, where)  # creates the pooler's parameters; the compiler removes the unused result
        return self.embedder.features(x)

    def __call__(
        self, inputs: Array, where: Tokens | None, noise: Noise | None = None, types: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B V"] | Float[Array, "B L V"]:
        """Logits of the classes; without classes, of the token at each position of a text; else the pooled vector."""
        if self.config.num_classes or self.config.inputs != "tokens":
            pooled = self.pooled(*self.encode(inputs, where, noise, types))
            return self.head(pooled.astype(self.config.dtype)) if self.config.num_classes else pooled
        return self.embedder.logits(self.features(inputs, where, noise, types))


class Forecaster(nn.Module):
    """PatchTST (Nie et al. 2023): each variable of a series is encoded separately as patches, and one linear map of all
    its vectors gives the future steps. Each series is normalised by its mean and standard deviation, and the forecast
    is denormalised (Kim et al. 2022, "RevIN", without trained scales)."""

    config: ModelConfig

    def setup(self) -> None:
        self.front = EMBEDDERS["series"](self.config)
        self.encoder = Stack(self.config, causal=False)
        self.head = Linear(self.config.num_classes, kernel_init=weight_init(self.config), wide=True)

    def __call__(self, inputs: Float[Array, "B time C"], noise: Noise | None = None) -> Float[Array, "B horizon C"]:
        """The next `config.num_classes` steps of each variable."""
        batch, time, variables = inputs.shape
        mean = inputs.mean(axis=1, keepdims=True)
        deviation = jnp.sqrt(inputs.var(axis=1, keepdims=True) + 1e-5)
        alone = ((inputs - mean) / deviation).transpose(0, 2, 1).reshape(batch * variables, time)
        if noise is not None:  # each variable has its own dropout masks
            rows = (noise.rows[:, None] * variables + jnp.arange(variables)).reshape(-1)
            noise = noise._replace(rows=rows)
        x, where = self.front(alone)
        x, _ = self.encoder(x, where, noise)
        out = self.head(x.reshape(batch, variables, x.shape[1] * x.shape[2])).transpose(0, 2, 1)
        return out * deviation + mean


def _mean(x: Float[Array, "B L D"], real: Bool[Array, "#B L"]) -> Float[Array, "B D"]:
    counted = real[..., None]
    return jnp.where(counted, x.astype(jnp.float32), 0).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1)


def _first(x: Float[Array, "B L D"], real: Bool[Array, "#B L"]) -> Float[Array, "B D"]:
    return x[:, 0]


# "mean": global average pooling without padding; "first": the first position (CLS, or the trained vector before the
# patches of an image); "pooler": tanh of a linear map of the first position (BERT).
POOLINGS: dict[str, Callable[[Array, Array], Array]] = {"mean": _mean, "first": _first, "pooler": _first}

FAMILIES: dict[str, Any] = {
    "encoder_decoder": EncoderDecoder,
    "decoder_only": DecoderOnly,
    "encoder_only": EncoderOnly,
    "forecaster": Forecaster,
    "recurrent_encoder_decoder": RecurrentEncoderDecoder,
    "recurrent_language_model": RecurrentLanguageModel,
}


def build(config: ModelConfig) -> nn.Module:
    """The module of a configuration. UserError: an unknown name, an impossible value, or a missing `vocab_size` or
    `num_classes`."""
    check_model(config)
    rows: dict[str, Collection[str]] = {
        "family": FAMILIES,
        "inputs": EMBEDDERS,
        "positions": POSITIONS,
        "activation": ACTIVATIONS,
        "pooling": POOLINGS,
        "cell": CELLS,
        "remat": ("none", *REMAT),
    }
    for key, known in rows.items():
        if getattr(config, key) not in known:
            raise UserError(f"there is no model.{key} {getattr(config, key)!r}: choose one of {', '.join(known)}")
    tokens = config.inputs == "tokens" or config.family != "encoder_only"
    if config.vocab_size < 1 and tokens and config.family != "forecaster":
        raise UserError("model.vocab_size is 0: it is set from the tokenizer, or give a number")
    if config.family == "forecaster" and not config.num_classes:
        raise UserError("model.num_classes is 0: a forecaster's head gives as many steps; it is set from data.horizon")
    return FAMILIES[config.family](config)


def _unrolled(model: Any) -> Any:
    return model.clone(config=dataclasses.replace(model.config, scan_layers=False, remat="none"))


def init(model: Any, key: Array, *arguments: Any) -> Any:
    """Parameters from a key. Scanned layers stack the parameters of single layers, so both have equal values."""
    config, params = model.config, _unrolled(model).init(key, *arguments)["params"]
    return {"params": stacked(params, len(config.attention)) if config.scan_layers else params}


def logical_axes(model: Any, *arguments: Any) -> dict[str, Names]:
    """Path of each parameter -> its axis names (`transformer.model.parameters`); stacked layers have "layers" first.
    Only shapes are evaluated."""
    axes = jax.eval_shape(_unrolled(model).init, jax.random.key(0), *arguments)["axes"]
    named, period = paths(axes), len(model.config.attention)
    return dict(stacked_axes(*row, period) for row in named.items()) if model.config.scan_layers else named


def output_layer(params: Any) -> embedders.OutputLayer:
    """The output layer: logits = features · table^T + bias. A tied table is the embedding's. Rows from
    `config.vocab_size` on are no tokens (`config.vocab_multiple`)."""
    return embedders.output_layer(params["params"]["embedder"])
