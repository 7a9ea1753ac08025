"""The recurrent baselines, with the interface of the Transformers: LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et
al. 2014). `model.cell` chooses Flax's cell, of width d_model. Dropout is on embeddings and on the outputs of layers,
never on the recurrent state (Zaremba et al. 2014, arXiv 1409.2329), which is in float32. Configuration keys for
attention heads, feed-forward layers and norms are ignored; positions and windows are refused."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer.config import ModelConfig
from transformer.errors import UserError
from transformer.model.embedders import TokenEmbedder, TokenModel
from transformer.model.layers import Linear
from transformer.model.noise import Dropout, Noise
from transformer.model.parameters import name_axes_of
from transformer.model.tokens import Tokens

CELLS: dict[str, Any] = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}

# A layer's recurrent state, leaves [B, D] in float32: (c, h) of an LSTM, h of a GRU.
Carry = Any


class Memory(NamedTuple):
    """The encoder's output for the decoder's attention."""

    values: Float[Array, "B S twoD"]  # both directions, concatenated
    keys: Float[Array, "B S D"]  # U h_j, computed once
    real: Bool[Array, "B S"]


class Recurrence(NamedTuple):
    """The state of decoding; its size does not depend on the number of tokens."""

    carries: tuple[Carry, ...]  # one per layer
    memory: Memory | None = None


def hidden(carry: Carry) -> Float[Array, "B D"]:
    """h, the part of a carry that is the layer's output."""
    return jax.tree.leaves(carry)[-1]


def zero_carry(config: ModelConfig, batch: int) -> Carry:
    """The initial carry."""
    return CELLS[config.cell](config.d_model, parent=None).initialize_carry(jax.random.key(0), (batch, config.d_model))


def _real(tokens: Int[Array, "B L"], where: Tokens) -> Bool[Array, "B L"]:
    return jnp.broadcast_to(where.real(tokens.shape[1]), tokens.shape)


def _choose(when: Bool[Array, " B"], yes: Carry, no: Carry) -> Carry:
    return jax.tree.map(lambda a, b: jnp.where(when[:, None], a, b), yes, no)


class AdditiveAttention(nn.Module):
    """sum_j a_j h_j, a = softmax_j(v . tanh(W s + U h_j)) over the positions that are not padding (Bahdanau et al.
    2015, section 3.1). U h_j are the memory's keys. A row of padding only gives zeros."""

    config: ModelConfig

    def setup(self) -> None:
        self.query = Linear(self.config.d_model, use_bias=False)
        self.score = Linear(1, use_bias=False, wide=True)

    def __call__(self, state: Float[Array, "B D"], memory: Memory) -> Float[Array, "B twoD"]:
        scores = self.score(jnp.tanh(self.query(state)[:, None] + memory.keys))[..., 0]
        weights = nn.softmax(jnp.where(memory.real, scores, jnp.finfo(scores.dtype).min))
        weights = jnp.where(memory.real, weights, 0).astype(memory.values.dtype)
        return jnp.einsum("bs,bsd->bd", weights, memory.values)


class Place(nn.Module):
    """One time step, scanned by `over_places`. Padding does not change the carry."""

    config: ModelConfig
    attentive: bool = False

    def setup(self) -> None:
        self.cell = CELLS[self.config.cell](self.config.d_model, dtype=self.config.dtype)
        if self.attentive:
            self.attention = AdditiveAttention(self.config)

    def __call__(
        self,
        carry: Carry,
        x: Float[Array, "B E"],
        real: Bool[Array, " B"],
        restart: Bool[Array, " B"] | None,
        memory: Memory | None,
    ) -> tuple[Carry, tuple[Float[Array, "B D"], Float[Array, "B twoD"] | None]]:
        """The next carry; the output, and the context of the attention."""
        context = None
        if restart is not None:
            carry = _choose(restart, jax.tree.map(jnp.zeros_like, carry), carry)
        if self.attentive:
            assert memory is not None
            context = self.attention(hidden(carry).astype(x.dtype), memory)
            x = jnp.concatenate([x, context], axis=-1)
        stepped, out = self.cell(carry, x)
        name_axes_of(self, self.cell)
        return _choose(real, stepped, carry), (out.astype(x.dtype), context)


def over_places(config: ModelConfig, name: str, attentive: bool = False, reverse: bool = False) -> nn.Module:
    """A layer: (carry, x [B, L, E], real [B, L], restart [B, L] or None, memory) -> (carry, (outputs, contexts)), a
    scan over positions, from the last to the first with `reverse`."""
    scanned = nn.scan(
        Place,
        variable_broadcast=("params", "axes"),
        split_rngs={"params": False},
        in_axes=(1, 1, 1, nn.broadcast),
        out_axes=1,
        reverse=reverse,
    )
    return scanned(config, attentive, name=name)


class RecurrentEncoder(nn.Module):
    """N bidirectional layers: each reads the outputs of both directions of the layer below."""

    config: ModelConfig

    def setup(self) -> None:
        layers = range(self.config.num_layers)
        self.rightward = [over_places(self.config, f"rightward_{i}") for i in layers]
        self.leftward = [over_places(self.config, f"leftward_{i}", reverse=True) for i in layers]
        self.dropouts = [Dropout(self.config.dropout, name=f"dropout_{i}") for i in range(self.config.num_layers + 1)]

    def __call__(
        self, x: Float[Array, "B S D"], real: Bool[Array, "B S"], noise: Noise | None
    ) -> tuple[Float[Array, "B S twoD"], tuple[tuple[Carry, Carry], ...]]:
        """The outputs, and the final carries (rightward, leftward) of each layer."""
        x, carries = self.dropouts[0](x, noise), []
        start = zero_carry(self.config, x.shape[0])
        for rightward, leftward, dropout in zip(self.rightward, self.leftward, self.dropouts[1:], strict=True):
            last, (forwards, _) = rightward(start, x, real, None, None)
            first, (backwards, _) = leftward(start, x, real, None, None)
            x = dropout(jnp.concatenate([forwards, backwards], axis=-1), noise)
            carries.append((last, first))
        return x, tuple(carries)


class RecurrentDecoder(nn.Module):
    """N layers from left to right, and o_i = W [s_i; c_i] (without attention W s_i), the input of the output layer.
    Attention is that of Bahdanau et al. 2015: at position i the first layer's state s_{i-1} queries for the context
    c_i, which is concatenated to the embedding of token i, and again to the last layer's output before the logits. So
    attention is inside the recurrence, and as sequential (in Luong et al. 2015 it comes after the recurrence)."""

    config: ModelConfig
    attentive: bool

    def setup(self) -> None:
        self.layers = [
            over_places(self.config, f"layer_{i}", attentive=self.attentive and i == 0)
            for i in range(self.config.num_layers)
        ]
        self.dropouts = [Dropout(self.config.dropout, name=f"dropout_{i}") for i in range(self.config.num_layers + 1)]
        self.out = Linear(self.config.d_model)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        real: Bool[Array, "B L"],
        restart: Bool[Array, "B L"] | None,
        state: Recurrence,
        noise: Noise | None,
    ) -> tuple[Float[Array, "B L D"], Recurrence]:
        x, carries, context = self.dropouts[0](x, noise), [], None
        for layer, dropout, carry in zip(self.layers, self.dropouts[1:], state.carries, strict=True):
            carry, (x, read) = layer(carry, x, real, restart, state.memory)
            x, context = dropout(x, noise), context if read is None else read
            carries.append(carry)
        both = x if context is None else jnp.concatenate([x, context], axis=-1)
        return self.out(both), Recurrence(tuple(carries), state.memory)


class Recurrent(TokenModel):
    """Refuses, at construction, options that recurrent families do not have. UserError: positions or a window."""

    def __post_init__(self) -> None:
        for key, value, only in (
            ("positions", self.config.positions, "none"),
            ("attention", self.config.attention, ("full",)),
            ("scan_layers", self.config.scan_layers, False),
        ):
            if value != only:
                raise UserError(
                    f"model.{key}={value!r} has no meaning for model.family={self.config.family!r}, which reads one "
                    f"token after another: set model.{key}={only!r}"
                )
        super().__post_init__()


class RecurrentEncoderDecoder(Recurrent):
    """Sequence to sequence with a bidirectional encoder, one sequence per row. With `model.recurrent_attention` it is
    Bahdanau et al. 2015 (arXiv 1409.0473), see `RecurrentDecoder`. Without, the decoder only gets the encoder's final
    states (Sutskever et al. 2014, arXiv 1409.3215). Both start from them: in each layer h_0 = tanh(W_h [h_last;
    h_first]) of both directions, and for an LSTM c_0 = W_c [c_last; c_first]."""

    def setup(self) -> None:
        self.embedder = TokenEmbedder(self.config)
        self.encoder = RecurrentEncoder(self.config)
        self.decoder = RecurrentDecoder(self.config, self.config.recurrent_attention)
        parts = len(jax.tree.leaves(zero_carry(self.config, 1)))
        self.bridges = [
            [Linear(self.config.d_model, name=f"bridge_{i}_{part}", wide=True) for part in range(parts)]
            for i in range(self.config.num_layers)
        ]
        if self.config.recurrent_attention:
            self.keys = Linear(self.config.d_model, use_bias=False)

    def encode(self, inputs: Int[Array, "B S"], where: Tokens, noise: Noise | None = None) -> Recurrence:
        real = _real(inputs, where)
        encoded, carries = self.encoder(self.embedder(inputs, where), real, noise)
        begun = tuple(self._bridge(i, *both) for i, both in enumerate(carries))
        memory = Memory(encoded, self.keys(encoded), real) if self.config.recurrent_attention else None
        return Recurrence(begun, memory)

    def _bridge(self, layer: int, rightward: Carry, leftward: Carry) -> Carry:
        leaves, structure = jax.tree.flatten(rightward)
        pairs = zip(leaves, jax.tree.leaves(leftward), strict=True)
        joined = [jnp.concatenate(pair, axis=-1).astype(self.config.dtype) for pair in pairs]
        made = [linear(both) for linear, both in zip(self.bridges[layer], joined, strict=True)]
        return jax.tree.unflatten(structure, [*made[:-1], jnp.tanh(made[-1])])

    def features(
        self,
        inputs: Int[Array, "B S"],
        inputs_where: Tokens,
        target_inputs: Int[Array, "B L"],
        targets_where: Tokens,
        noise: Noise | None = None,
    ) -> Float[Array, "B L D"]:
        """The input of the output layer for each of `target_inputs`, which begin with BOS."""
        state = self.encode(inputs, inputs_where, noise)
        x, real = self.embedder(target_inputs, targets_where), _real(target_inputs, targets_where)
        x, _ = self.decoder(x, real, None, state, noise)
        return self.embedder.features(x)

    def start(self, inputs: Int[Array, "B S"], where: Tokens, slots: int) -> Recurrence:
        """Encodes the inputs once. The state is independent of the number of target tokens, so `slots` is not used."""
        return self.encode(inputs, where)

    def step(
        self, tokens: Int[Array, "B L"], where: Tokens, state: Recurrence
    ) -> tuple[Float[Array, "B L V"], Recurrence]:
        decoded, state = self.decoder(self.embedder(tokens, where), _real(tokens, where), None, state, None)
        return self.embedder.logits(self.embedder.features(decoded)), state


class RecurrentLanguageModel(Recurrent):
    """A left-to-right language model. Rows may be packed: the state resets at position 0 of every segment."""

    def setup(self) -> None:
        self.embedder = TokenEmbedder(self.config)
        self.decoder = RecurrentDecoder(self.config, attentive=False)

    def features(
        self, target_inputs: Int[Array, "B L"], targets_where: Tokens, noise: Noise | None = None
    ) -> Float[Array, "B L D"]:
        start = self.start(target_inputs.shape[0], 0)
        return self.embedder.features(self._read(target_inputs, targets_where, start, noise)[0])

    def start(self, batch: int, slots: int) -> Recurrence:
        """The initial state; it is independent of the number of tokens, so `slots` is not used."""
        return Recurrence((zero_carry(self.config, batch),) * self.config.num_layers)

    def step(
        self, tokens: Int[Array, "B L"], where: Tokens, state: Recurrence
    ) -> tuple[Float[Array, "B L V"], Recurrence]:
        decoded, state = self._read(tokens, where, state, None)
        return self.embedder.logits(self.embedder.features(decoded)), state

    def _read(
        self, tokens: Int[Array, "B L"], where: Tokens, state: Recurrence, noise: Noise | None
    ) -> tuple[Float[Array, "B L D"], Recurrence]:
        real = _real(tokens, where)
        restart = None if where.positions is None else real & (where.positions == 0)
        return self.decoder(self.embedder(tokens, where), real, restart, state, noise)
