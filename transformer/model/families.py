"""The model families, each a short composition of the rooms: FAMILIES, and `build(config)`.

Every family is called with what a batch of its task holds and gives logits; `features` stops before the output table
(`output_table(params)`), for a loss that never holds all logits. Decoding is by `start` and `step`:
`start(...)` gives the caches, `step(tokens, where, caches)` the logits of the new tokens and the caches with them.
"""

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig, UserError
from transformer.model import cache as kv
from transformer.model.embedders import TokenEmbedder
from transformer.model.layers import Tokens, key_heads
from transformer.model.noise import Noise
from transformer.model.positions import POSITIONS
from transformer.model.recurrent import RecurrentEncoderDecoder, RecurrentLanguageModel
from transformer.model.stacks import Memory, Stack, windows


class Decoding(NamedTuple):
    """All that decoding carries from token to token."""

    caches: tuple[kv.Cache, ...]
    memory: Memory | None = None


def _empty_caches(config: ModelConfig, batch: int, slots: int) -> tuple[kv.Cache, ...]:
    """A cache for each layer: of a window only what it sees."""
    head_dim = config.d_model // config.num_heads
    return tuple(kv.empty(batch, slots, key_heads(config), head_dim, head_dim, window) for window in windows(config))


class EncoderDecoder(nn.Module):
    """The paper's model (Vaswani et al. 2017, figure 1): encoder, decoder with cross-attention, one shared table."""

    config: ModelConfig

    def setup(self) -> None:
        self.embedder = TokenEmbedder(self.config)
        self.encoder = Stack(self.config, causal=False)
        self.decoder = Stack(self.config, causal=True, cross=True)

    def encode(self, inputs: Int[Array, "B S"], where: Tokens, noise: Noise | None = None) -> Memory:
        encoded, _ = self.encoder(self.embedder(inputs), where, noise)
        return self.decoder.memory(encoded, where)

    def features(
        self,
        inputs: Int[Array, "B S"],
        inputs_where: Tokens,
        target_inputs: Int[Array, "B L"],
        targets_where: Tokens,
        noise: Noise | None = None,
    ) -> Float[Array, "B L D"]:
        """The decoder's output for each of `target_inputs` (which begin with BOS), before the output table."""
        memory = self.encode(inputs, inputs_where, noise)
        return self.decoder(self.embedder(target_inputs), targets_where, noise, None, memory)[0]

    def __call__(
        self,
        inputs: Int[Array, "B S"],
        inputs_where: Tokens,
        target_inputs: Int[Array, "B L"],
        targets_where: Tokens,
        noise: Noise | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of the token after each of `target_inputs`."""
        return self.embedder.logits(self.features(inputs, inputs_where, target_inputs, targets_where, noise))

    def start(self, inputs: Int[Array, "B S"], where: Tokens, slots: int) -> Decoding:
        """Encodes the inputs once, and makes room for `slots` target tokens."""
        return Decoding(_empty_caches(self.config, inputs.shape[0], slots), self.encode(inputs, where))

    def step(self, tokens: Int[Array, "B L"], where: Tokens, state: Decoding) -> tuple[Float[Array, "B L V"], Decoding]:
        decoded, caches = self.decoder(self.embedder(tokens), where, None, state.caches, state.memory)
        return self.embedder.logits(decoded), Decoding(caches, state.memory)


class DecoderOnly(nn.Module):
    """A causal language model: the decoder without cross-attention, output tied to the embedding."""

    config: ModelConfig

    def setup(self) -> None:
        self.embedder = TokenEmbedder(self.config)
        self.decoder = Stack(self.config, causal=True)

    def features(
        self, target_inputs: Int[Array, "B L"], targets_where: Tokens, noise: Noise | None = None
    ) -> Float[Array, "B L D"]:
        return self.decoder(self.embedder(target_inputs), targets_where, noise)[0]

    def __call__(
        self, target_inputs: Int[Array, "B L"], targets_where: Tokens, noise: Noise | None = None
    ) -> Float[Array, "B L V"]:
        return self.embedder.logits(self.features(target_inputs, targets_where, noise))

    def start(self, batch: int, slots: int) -> Decoding:
        return Decoding(_empty_caches(self.config, batch, slots))

    def step(self, tokens: Int[Array, "B L"], where: Tokens, state: Decoding) -> tuple[Float[Array, "B L V"], Decoding]:
        decoded, caches = self.decoder(self.embedder(tokens), where, None, state.caches)
        return self.embedder.logits(decoded), Decoding(caches)


FAMILIES: dict[str, Any] = {
    "encoder_decoder": EncoderDecoder,
    "decoder_only": DecoderOnly,
    "recurrent_encoder_decoder": RecurrentEncoderDecoder,
    "recurrent_language_model": RecurrentLanguageModel,
}


def build(config: ModelConfig) -> nn.Module:
    """The module of a configuration whose `vocab_size` is known."""
    for key, value, rows in (("family", config.family, FAMILIES), ("positions", config.positions, POSITIONS)):
        if value not in rows:
            raise UserError(f"there is no model.{key} {value!r}: choose one of {', '.join(rows)}")
    if config.vocab_size < 1:
        raise UserError("model.vocab_size is 0: it is set from the tokenizer, or give a number")
    return FAMILIES[config.family](config)


def output_table(params: Any) -> Float[Array, "V D"]:
    """The table whose product with the features gives the logits: the embedding's (tied)."""
    return params["params"]["embedder"]["table"]
