"""Decoding with a cache gives what the whole sequence gives, position by position, and a window keeps what it sees."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import ModelConfig
from transformer.model import cache as kv
from transformer.model import masks
from transformer.model.families import FAMILIES, build
from transformer.model.positions import POSITIONS
from transformer.model.tokens import Tokens

B, L, S, V, W = 4, 13, 5, 13, 2
TINY = ModelConfig(
    attention=(f"window:{W}", "full"), num_layers=2, d_model=16, d_ff=7, num_heads=4, dropout=0.0, max_positions=23,
    vocab_size=V,
)  # fmt: skip
# One layer of each kind: what either does wrong shows in the logits.
PATTERNS = (("full",), (f"window:{W}",), (f"window:{W}", "full"))
SLOTS = L + 2
# A long prompt, a single token, none (this row goes on from an empty cache), and one as long as the window's cache.
PROMPTS, WIDTH = np.array([7, 1, 0, 3]), 8

# The families of attention that write tokens.
WRITERS = [name for name, family in FAMILIES.items() if hasattr(family, "step") and not name.startswith("recurrent")]


def tiny(**changes: Any) -> ModelConfig:
    config = dataclasses.replace(TINY, **changes)
    return dataclasses.replace(config, num_layers=len(config.attention))


def source(config: ModelConfig) -> tuple[Any, ...]:
    """What an encoder reads, padded; nothing for a decoder alone."""
    if config.family == "decoder_only":
        return ()
    tokens = np.random.default_rng(1).integers(0, V, (B, S)).astype(np.int32)
    positions = np.broadcast_to(np.arange(S), (B, S))
    real = (positions < np.array([[5], [2], [4], [1]])).astype(np.int32)
    return jnp.asarray(tokens), Tokens(jnp.asarray(positions * real), jnp.asarray(real))


def run(start: int, stop: int) -> Tokens:
    positions = jnp.broadcast_to(jnp.arange(start, stop), (B, stop - start))
    return Tokens(positions, jnp.ones_like(positions))


@functools.cache
def shapes_of(config: ModelConfig) -> Any:
    tokens = jnp.zeros((B, L), jnp.int32)
    return jax.eval_shape(build(config).init, jax.random.key(0), *source(config), tokens, run(0, L))


class Decoder:
    """A model with random weights. Only its one-token step is compiled: all else runs once or twice."""

    def __init__(self, config: ModelConfig):
        self.config, self.model = config, build(config)
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, V, (B, L)).astype(np.int32)
        # A window has no weights, so patterns of one length share their shapes.
        shapes = shapes_of(dataclasses.replace(config, attention=("full",)))
        self.params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, jnp.float32), shapes)
        self.one = jax.jit(self.several)

    def whole(self, tokens: np.ndarray) -> np.ndarray:
        args = (*source(self.config), jnp.asarray(tokens), run(0, tokens.shape[1]))
        return np.asarray(self.model.apply(self.params, *args))

    def start(self, slots: int) -> Any:
        args = (*source(self.config), slots) if self.config.family == "encoder_decoder" else (B, slots)
        return self.model.apply(self.params, *args, method="start")

    def several(self, tokens: Any, where: Tokens, state: Any) -> Any:
        return self.model.apply(self.params, tokens, where, state, method="step")

    def next(self, at: np.ndarray, state: Any) -> Any:
        """The logits of one token a row, that of position `at`."""
        where = Tokens(jnp.asarray(at[:, None], jnp.int32), jnp.ones((B, 1), jnp.int32))
        logits, state = self.one(jnp.asarray(self.tokens[np.arange(B), at][:, None]), where, state)
        return np.asarray(logits)[:, 0], state


def same(got: Any, expected: Any, where: Any) -> None:
    np.testing.assert_allclose(got, expected, atol=2e-5, err_msg=f"position {where}")


def cases() -> list[Any]:
    """All rows of all registries. Of a decoder alone each encoding with the mixed pattern and one of the groupings, and
    with full attention without grouping run every time; a family adds what is the same for all of these: three
    encodings. The others are slow."""
    rows = []
    for case in itertools.product(WRITERS, POSITIONS, PATTERNS, (0, 1, 2)):
        family, positions, pattern, groups = case
        once = len(pattern) == 2 and groups == list(POSITIONS).index(positions) % 3
        plain = pattern == ("full",) and not groups
        often = once or plain if family == "decoder_only" else once and positions in ("sinusoidal", "rotary", "t5")
        name = f"{family}-{positions}-{'+'.join(pattern)}-{groups}"
        rows.append(pytest.param(*case, id=name, marks=() if often else pytest.mark.slow))
    return rows


@pytest.mark.parametrize(("family", "positions", "pattern", "groups"), cases())
def test_decoding_is_the_whole_sequence(family: str, positions: str, pattern: tuple[str, ...], groups: int) -> None:
    """Prompts of different lengths in one pass, padded, then each row on at its own position, far past its windows: its
    neighbours, its padding and the hole that this leaves in its slots change nothing. And token by token from nothing.
    """
    decoder = Decoder(tiny(family=family, positions=positions, attention=pattern, num_kv_heads=groups))
    expected, rows = decoder.whole(decoder.tokens), np.arange(B)

    places = np.broadcast_to(np.arange(WIDTH), (B, WIDTH))
    real = (places < PROMPTS[:, None]).astype(np.int32)
    prompt = np.where(real, decoder.tokens[:, :WIDTH], 9)  # the padding holds a token like any other
    empty = decoder.start(SLOTS)
    logits, state = decoder.several(jnp.asarray(prompt), Tokens(jnp.asarray(places), jnp.asarray(real)), empty)
    same(np.asarray(logits)[real > 0], expected[:, :WIDTH][real > 0], "of the prompts")
    for t in range(L - PROMPTS.max()):
        at = PROMPTS + t
        logits, state = decoder.next(at, state)
        same(logits, expected[rows, at], at)

    state = empty
    for t in range(L):
        logits, state = decoder.next(np.full(B, t), state)
        same(logits, expected[:, t], t)
    assert decoder.one._cache_size() == 1, "every step is one program"


def test_several_tokens_at_once() -> None:
    """Any cut of the sequence, to the last slot of the cache: pieces shorter and longer than the window's cache."""
    decoder = Decoder(tiny(family="decoder_only", positions="rotary", num_kv_heads=2))
    expected = decoder.whole(decoder.tokens)
    for pieces in ((0, 4, 13), (0, 9, 13), (0, 1, 5, 9, 13), (0, 1, 2, 3, 4, 13)):
        state = decoder.start(L)
        for start, stop in itertools.pairwise(pieces):
            logits, state = decoder.one(jnp.asarray(decoder.tokens[:, start:stop]), run(start, stop), state)
            same(logits, expected[:, start:stop], (start, stop))


def test_tokens_outside_the_windows_are_never_seen() -> None:
    """Two layers of window 2 see four tokens back: another beginning gives the same bits from there on."""
    decoder = Decoder(tiny(family="decoder_only", positions="rotary", attention=(f"window:{W}",) * 2))
    other, changed = Decoder(decoder.config), 3
    other.tokens[:, :changed] = (other.tokens[:, :changed] + 1) % V
    state, its_state = decoder.start(SLOTS), other.start(SLOTS)
    for t in range(L):
        mine, state = decoder.next(np.full(B, t), state)
        its, its_state = other.next(np.full(B, t), its_state)
        if t < changed + 2 * W:
            assert (np.abs(mine - its).max(axis=-1) > 1e-4).all(), t
        else:
            np.testing.assert_array_equal(mine, its, err_msg=str(t))


# --- The caches themselves


def caches(slots: int, *attention: str, **changes: Any) -> tuple[kv.Cache, ...]:
    """Of a decoder, by abstract evaluation: no array is made."""
    model = build(tiny(family="decoder_only", attention=attention, **changes))
    return jax.eval_shape(lambda: model.apply({}, B, slots, method="start")).caches


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_a_window_keeps_window_plus_one_slots() -> None:
    for window in (0, 1, 2, 7):
        (rolling,) = caches(50, f"window:{window}")
        assert isinstance(rolling, kv.RollingCache)
        assert {x.shape[-2] for x in rolling.kept[:2]} == {x.shape[1] for x in rolling.kept.where[:2]} == {window + 1}
        assert size(rolling) == B * (window + 1) * (2 * 16 + 2) * 4  # k and v of 16 features, position and segment
    assert size(caches(50, "window:2", "window:7")) == size(caches(5000, "window:2", "window:7"))
    windowed, full = caches(5000, "window:2", "full")
    assert (type(windowed), type(full)) == (kv.RollingCache, kv.FullCache)
    assert full.kept.k.shape == (B, 4, 5000, 4)
    assert windowed.kept.k.shape == (B, 4, 3, 4)


def test_grouped_heads_keep_less() -> None:
    for groups in (1, 2, 4):
        for cache in caches(50, "window:2", "full", num_kv_heads=groups):
            assert cache.kept.k.shape[1::2] == cache.kept.v.shape[1::2] == (groups, 4)


@pytest.mark.parametrize(("window", "slots", "expected"), [(2, 4, 3), (2, 3, 3), (2, 2, 2), (9, 4, 4), (None, 4, 4)])
def test_a_window_as_long_as_the_sequence_is_no_window(window: int | None, slots: int, expected: int) -> None:
    cache = kv.empty(2, slots, 3, 5, 7, window)
    assert isinstance(cache, kv.RollingCache) == (slots > expected)
    assert cache.kept.k.shape == (2, 3, expected, 5)
    assert cache.kept.v.shape == (2, 3, expected, 7)
    assert (np.asarray(cache.kept.where.segments) == -1).all()


def test_an_empty_slot_is_in_nobodys_segment() -> None:
    cache = kv.empty(2, 5, 3, 7, 4)
    ids = jnp.array([[4, 5], [0, 1]]), jnp.array([[1, 1], [0, 1]])
    new = kv.Keys(jnp.full((2, 2, 3, 7), 1.0), jnp.full((2, 2, 3, 4), 2.0), Tokens(*ids))
    seen, cache = kv.extend(cache, jax.tree.map(lambda x: x[:, :1], new))
    np.testing.assert_array_equal(seen.where.segments, [[1, -1, -1, -1, -1], [0, -1, -1, -1, -1]])
    seen, cache = kv.extend(cache, new)
    assert isinstance(cache, kv.FullCache)
    np.testing.assert_array_equal(cache.kept.where.positions, [[4, 4, 5, 0, 0], [0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(cache.kept.where.segments, [[1, 1, 1, -1, -1], [0, 0, 1, -1, -1]])
    np.testing.assert_array_equal(cache.kept.k[0, 0, :, 0], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(cache.kept.v[1, 2, :, 3], [2, 2, 2, 0, 0])
    for mine, kept in zip(*map(jax.tree.leaves, (seen, cache.kept)), strict=True):
        np.testing.assert_array_equal(mine, kept.swapaxes(1, 2) if kept.ndim == 4 else kept)
    assert int(cache.next_slot) == 3


def tokens_at(first: np.ndarray, count: np.ndarray, width: int) -> kv.Keys:
    """`count` tokens a row from position `first` on, then padding. Token p of row b holds 100 b + p, padding -1."""
    places = first[:, None] + np.arange(width)
    real = np.arange(width) < count[:, None]
    value = np.where(real, 100 * np.arange(len(first))[:, None] + places, -1).astype(np.float32)[..., None, None]
    return kv.Keys(
        jnp.asarray(value), jnp.asarray(value + 0.5), Tokens(jnp.asarray(places), jnp.asarray(real.astype(np.int32)))
    )


@pytest.mark.parametrize("window", [0, 2, 4])
def test_position_p_lives_in_slot_p_mod_window_plus_one(window: int) -> None:
    """Pieces of all lengths and rows at different places: every slot holds the newest position of its remainder, and
    a query sees each of the `window` tokens before it, itself, and nothing else, once."""
    extend = jax.jit(kv.extend)
    rng = np.random.default_rng(window)
    cache, length = kv.empty(3, 99, 1, 1, 1, window), np.zeros(3, np.int64)
    for width in (1, 1, 3, 8, 1, 3, 8, 3, 1, 1, 1):
        count = rng.integers(0, width + 1, 3) if width > 1 else np.ones(3, np.int64)
        seen, cache = extend(cache, tokens_at(length, count, width))
        assert isinstance(cache, kv.RollingCache)
        places, ones = jnp.asarray(length[:, None] + np.arange(width)), jnp.ones((3, width), jnp.int32)
        mask = np.asarray(
            masks.visible(places, seen.where.positions, ones, seen.where.segments, masks.band(True, window))
        )
        keys, values = np.asarray(seen.k), np.asarray(seen.v)
        held = [np.asarray(x).reshape(3, window + 1) for x in jax.tree.leaves(cache.kept)]
        for b, i in np.argwhere(np.arange(width) < count[:, None]):
            p = length[b] + i
            expected = np.arange(max(0, p - window), p + 1)
            for x, base in ((keys, 100 * b), (values, 100 * b + 0.5)):
                np.testing.assert_array_equal(np.sort(x[b, mask[b, i], 0, 0]), base + expected)
        length += count
        for b, slot in np.ndindex(3, window + 1):
            newest = [p for p in range(length[b]) if p % (window + 1) == slot][-1:]
            if newest:
                assert [x[b, slot] for x in held] == [100 * b + newest[0], 100 * b + newest[0] + 0.5, newest[0], 1]
            else:
                assert held[3][b, slot] == -1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_bfloat16_model_keeps_bfloat16(pattern: tuple[str, ...]) -> None:
    """Half the memory, after a step as before it; and the logits are those of the whole sequence, to eight bits."""
    decoder = Decoder(tiny(family="encoder_decoder", attention=pattern, dtype="bfloat16"))
    state = decoder.start(SLOTS)
    for _ in range(2):
        kept = [cache.kept for cache in state.caches]
        assert {x.dtype for each in (*kept, *state.memory) for x in (each.k, each.v)} == {jnp.dtype("bfloat16")}
        logits, state = decoder.several(jnp.asarray(decoder.tokens[:, :3]), run(0, 3), decoder.start(SLOTS))
    expected = decoder.whole(decoder.tokens[:, :3])
    assert np.abs(np.asarray(logits) - expected).max() < 0.05 * np.abs(expected).max()


def test_an_encoder_told_by_lengths_is_decoded_as_one_told_by_segments() -> None:
    decoder = Decoder(tiny(family="encoder_decoder", attention=("full",)))
    inputs, where = source(decoder.config)
    tokens = jnp.asarray(decoder.tokens[:, :3])
    logits = []
    for told in (where, Tokens(lengths=jnp.asarray(where.segments.sum(axis=1)))):
        state = decoder.model.apply(decoder.params, inputs, told, SLOTS, method="start")
        logits.append(decoder.several(tokens, run(0, 3), state)[0])
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
