"""Models made up for tests: the logits of a prefix are a row of a random table, by the prefix's hash."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.decoding import DECODERS, Decoded

EOS, BOS, SLOTS = 2, 1, 12


class State(NamedTuple):
    """All kinds of leaves: what moves with the hypotheses, what never changes, and a scalar."""

    said: Array  # [B, slots]
    row: Array  # [B], never changes
    count: Array


class Hashed:
    """Logits [V] of row b after a prefix: a function of both, by a float64 table [251, V]."""

    def __init__(self, vocabulary: int, seed: int):
        self.table = np.random.default_rng(seed).normal(size=(251, vocabulary)) * 1.5
        self.factors = np.random.default_rng(seed + 1).integers(1, 251, SLOTS)
        self.own = 7  # 0: all rows say the same

    def log_probs(self, row: int, prefix: tuple[int, ...]) -> np.ndarray:
        """Float64, for a prefix that begins with BOS."""
        code = self.own * row + sum(int(f) * (token + 1) for f, token in zip(self.factors, prefix, strict=False))
        logits = self.table[code % 251]
        return logits - np.log(np.exp(logits).sum())

    def score(self, row: int, said: list[int]) -> float:
        """The sum of log-probabilities, one token after the other."""
        return sum(self.log_probs(row, (BOS, *said[:i]))[token] for i, token in enumerate(said))

    def start(self, rows: int) -> tuple[Any, State, Array, Array]:
        """The first arguments of every strategy."""
        return start(jnp.asarray(self.table, jnp.float32), jnp.asarray(self.factors), rows, self.own)

    def run(
        self, name: str, most: int, rows: int, limit: int | None = None, keys: Any = None, **options: Any
    ) -> Decoded:
        """A strategy over rows 0, 1, ...; compiled once for all models of a vocabulary."""
        program = _program(name, most, rows, limit, tuple(options.items()))
        more = {} if keys is None else {"keys": keys}
        return jax.device_get(program(np.float32(self.table), self.factors, self.own, more))


def start(table: Array, factors: Array, rows: int, own: Any) -> tuple[Any, State, Array, Array]:
    def step(tokens: Array, positions: Array, state: State) -> tuple[Array, State]:
        said = state.said.at[:, state.count].set(tokens[:, 0])
        code = own * state.row + ((said + 1) * factors).sum(axis=1)
        return table[code % 251], State(said, state.row, state.count + 1)

    state = State(jnp.full((rows, SLOTS), -1), jnp.arange(rows), jnp.int32(0))
    return step, state, jnp.full(rows, BOS), jnp.zeros(rows, jnp.int32)


@functools.cache
def _program(name: str, most: int, rows: int, limit: int | None, options: tuple[tuple[str, Any], ...]) -> Any:
    def decode(table: Array, factors: Array, own: Array, more: dict[str, Any]) -> Decoded:
        return DECODERS[name](*start(table, factors, rows, own), most, limit, EOS, **dict(options), **more)

    return jax.jit(decode)


def outputs(decoded: Decoded, row: int) -> list[list[int]]:
    """The outputs of a row, as many tokens as each has; what follows is EOS."""
    said = []
    for tokens, length in zip(decoded.tokens[row], decoded.lengths[row], strict=True):
        assert (tokens[length:] == EOS).all()
        said.append(tokens[:length].tolist())
    return said
