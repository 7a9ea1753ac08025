"""Decoding with a cache gives what the whole sequence gives, position by position."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import ModelConfig
from transformer.model import cache as kv
from transformer.model.families import FAMILIES, build
from transformer.model.layers import Tokens
from transformer.model.positions import POSITIONS

QUICK = {"xla_backend_optimization_level": 0}
B, L, S, V = 3, 7, 5, 13
# One layer of each kind: what either does wrong shows in the logits.
TINY = ModelConfig(
    attention=("window:2", "full"), num_layers=2, d_model=6, d_ff=7, num_heads=2, dropout=0.0, max_positions=23,
    vocab_size=V,
)  # fmt: skip
SLOTS = L + 2


class Decoder:
    """A family with random weights: its full forward, and its start and step, each compiled once."""

    def __init__(self, config: ModelConfig):
        self.pair = config.family == "encoder_decoder"
        self.model = build(config)
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, V, (B, L)).astype(np.int32)
        self.inputs = rng.integers(0, V, (B, S)).astype(np.int32)
        self.input_lengths = np.array([5, 2, 4])
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), *self.source(), jnp.asarray(self.tokens), run(0, L))
        self.params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, jnp.float32), shapes)
        apply = self.model.apply
        self.forward = jax.jit(lambda *args: apply(self.params, *args), compiler_options=QUICK)
        self.step = jax.jit(lambda *args: apply(self.params, *args, method="step"), compiler_options=QUICK)

    def source(self) -> tuple[Any, ...]:
        if not self.pair:
            return ()
        positions = np.broadcast_to(np.arange(S), (B, S))
        real = (positions < self.input_lengths[:, None]).astype(np.int32)
        return jnp.asarray(self.inputs), Tokens(jnp.asarray(positions * real), jnp.asarray(real))

    def whole(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(self.forward(*self.source(), jnp.asarray(tokens), run(0, tokens.shape[1])))

    def start(self, slots: int) -> Any:
        args = (*self.source(), slots) if self.pair else (B, slots)
        return self.model.apply(self.params, *args, method="start")


@functools.cache
def decoder_of(family: str, positions: str) -> Decoder:
    return Decoder(dataclasses.replace(TINY, family=family, positions=positions))


def run(start: int, stop: int) -> Tokens:
    positions = jnp.broadcast_to(jnp.arange(start, stop), (B, stop - start))
    return Tokens(positions, jnp.ones_like(positions))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_step_by_step_is_the_whole_sequence(family: str, positions: str) -> None:
    decoder = decoder_of(family, positions)
    expected = decoder.whole(decoder.tokens)
    state = decoder.start(SLOTS)  # more room than is used
    for t in range(L):
        logits, state = decoder.step(jnp.asarray(decoder.tokens[:, t : t + 1]), run(t, t + 1), state)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=2e-5, err_msg=f"position {t}")
    assert [int(cache.next_slot) for cache in state.caches] == [L, L]


def test_several_tokens_at_once() -> None:
    """A prompt of four, then three, to the last slot of the cache."""
    decoder = decoder_of("decoder_only", "sinusoidal")
    expected = decoder.whole(decoder.tokens)
    state = decoder.start(L)
    for start, stop in [(0, 4), (4, 7)]:
        logits, state = decoder.step(jnp.asarray(decoder.tokens[:, start:stop]), run(start, stop), state)
        np.testing.assert_allclose(logits, expected[:, start:stop], atol=2e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_prompts_of_different_lengths(positions: str) -> None:
    """Prompts padded to a width of five, then each row goes on at its own position: its neighbours, its padding and the
    hole that the padding leaves in its slots change nothing."""
    decoder = decoder_of("decoder_only", positions)
    expected = decoder.whole(decoder.tokens)
    lengths, width = np.array([5, 1, 3]), 5
    places = np.broadcast_to(np.arange(width), (B, width))
    real = (places < lengths[:, None]).astype(np.int32)
    prompt = np.where(real, decoder.tokens[:, :width], 9)  # the padding holds a token like any other
    state = decoder.start(SLOTS)
    where = Tokens(jnp.asarray(places), jnp.asarray(real))
    logits, state = decoder.step(jnp.asarray(prompt), where, state)
    rows = np.arange(B)
    for b, t in zip(*np.nonzero(real), strict=True):
        np.testing.assert_allclose(logits[b, t], expected[b, t], atol=2e-5)
    for t in range(2):
        at = lengths + t
        where = Tokens(jnp.asarray(at[:, None]), jnp.ones((B, 1), jnp.int32))
        logits, state = decoder.step(jnp.asarray(decoder.tokens[rows, at][:, None]), where, state)
        np.testing.assert_allclose(logits[:, 0], expected[rows, at], atol=2e-5)


def test_an_empty_slot_is_in_nobodys_segment() -> None:
    cache = kv.empty(2, 5, 3, 7)
    assert cache.k.shape == cache.v.shape == (2, 5, 3, 7)
    assert (np.asarray(cache.segments) == -1).all()
    k, v = (jnp.full((2, 2, 3, 7), value) for value in (1.0, 2.0))
    ids = jnp.array([[4, 5], [0, 1]]), jnp.array([[1, 1], [0, 1]])
    cache = kv.write(kv.write(cache, k[:, :1], v[:, :1], *(x[:, :1] for x in ids)), k, v, *ids)
    np.testing.assert_array_equal(cache.positions, [[4, 4, 5, 0, 0], [0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(cache.segments, [[1, 1, 1, -1, -1], [0, 0, 1, -1, -1]])
    np.testing.assert_array_equal(cache.k[0, :, 0, 0], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(cache.v[1, :, 2, 6], [2, 2, 2, 0, 0])
    assert int(cache.next_slot) == 3
