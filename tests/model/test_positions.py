"""The paper's sinusoid against a float64 loop, the end of a learned table, and what every encoding owes."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import ModelConfig
from transformer.model.positions import POSITIONS, check_length, longest, sinusoid

D = 6


def paper(positions: np.ndarray, d_model: int) -> np.ndarray:
    """Section 3.5, term by term: PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(p / 10000^(2i/D))."""
    table = np.zeros((len(positions), d_model))
    for row, p in enumerate(positions):
        for feature in range(d_model):
            angle = int(p) / 10000 ** ((feature - feature % 2) / d_model)
            table[row, feature] = math.cos(angle) if feature % 2 else math.sin(angle)
    return table


def tensor2tensor(positions: np.ndarray, d_model: int) -> np.ndarray:
    """The other table: sines, then cosines, with D/2 - 1 in the exponent."""
    half = d_model // 2
    angle = positions[:, None] * np.exp(-math.log(10000) / (half - 1) * np.arange(half))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


@pytest.mark.parametrize("d_model", [1, 2, 6, 7, 64, 129])
def test_sinusoid_is_the_papers(d_model: int) -> None:
    """In float32 an angle is off by at most a few units in its last place, 6e-8 of itself: so is its sine, in absolute
    terms. That is 1e-5 at position 50, and 1e-3 at position 5000."""
    positions = np.array([0, 1, 2, 3, 7, 50, 511, 512, 1999, 5000])
    error = np.abs(np.asarray(sinusoid(jnp.asarray(positions), d_model), np.float64) - paper(positions, d_model))
    assert (error.max(axis=1) <= 2e-7 * (positions + 2)).all()


def test_sinusoid_is_not_another_table() -> None:
    positions = np.arange(11)
    difference = np.abs(np.asarray(sinusoid(jnp.asarray(positions), 8)) - tensor2tensor(positions, 8))
    assert difference[1:].max(axis=1).min() > 0.5


def test_sinusoid_takes_positions_of_any_shape() -> None:
    positions = np.array([[3, 0, 4], [0, 1, 2]])
    expected = paper(positions.ravel(), 5).reshape(2, 3, 5)
    np.testing.assert_allclose(sinusoid(jnp.asarray(positions), 5), expected, atol=1e-6)


def config(positions: str, rows: int = 7) -> ModelConfig:
    return ModelConfig(positions=positions, d_model=D, max_positions=rows)


def encoder(name: str) -> tuple[nn.Module, dict]:
    module = POSITIONS[name](config(name))
    places = jnp.zeros((1, 1), jnp.int32)
    return module, module.init(jax.random.key(0), jnp.zeros((1, 1, D)), places)


@pytest.mark.parametrize("name", POSITIONS)
def test_an_encoding_is_a_function_of_the_position(name: str) -> None:
    """Not of the place in the row, of the neighbours, or of the embedding it is added to; and it keeps the dtype."""
    module, params = encoder(name)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, D)), jnp.float32)
    packed = jnp.array([[0, 1, 2, 0, 1], [6, 3, 2, 5, 0]])
    added = module.apply(params, x, packed) - x
    alone = jnp.stack([module.apply(params, jnp.zeros((1, 1, D)), jnp.full((1, 1), p))[0, 0] for p in range(7)])
    np.testing.assert_allclose(added, alone[packed], atol=1e-6)
    assert module.apply(params, x.astype(jnp.bfloat16), packed).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", POSITIONS)
def test_an_encoding_tells_positions_apart_or_adds_nothing(name: str) -> None:
    module, params = encoder(name)
    added = np.asarray(module.apply(params, jnp.zeros((1, 7, D)), jnp.arange(7)[None]))[0]
    if name == "none":
        assert not added.any()
        assert not jax.tree.leaves(params)
    else:
        apart = np.abs(added[:, None] - added[None]).max(axis=-1)
        assert apart[~np.eye(7, dtype=bool)].min() > 1e-2


@pytest.mark.parametrize("name", POSITIONS)
def test_the_longest_sequence_is_the_last_finite_one(name: str) -> None:
    """What `longest` promises is what the module does: NaN from there on where a table ends, inside jit too."""
    module, params = encoder(name)
    limit = longest(config(name))
    places = jnp.arange(9)[None]
    out = jax.jit(module.apply)(params, jnp.zeros((1, 9, D)), places)[0]
    finite = 9 if limit is None else limit
    assert np.isfinite(out[:finite]).all()
    assert np.isnan(out[finite:]).all()
    assert limit == (7 if name == "learned" else None)


def test_learned_starts_as_wide_as_the_embeddings_table() -> None:
    wide = ModelConfig(positions="learned", d_model=64, max_positions=211)
    places = jnp.zeros((1, 1), jnp.int32)
    (table,) = jax.tree.leaves(POSITIONS["learned"](wide).init(jax.random.key(0), jnp.zeros((1, 1, 64)), places))
    assert table.shape == (211, 64)
    assert float(table.std()) == pytest.approx(64**-0.5, rel=0.03)


@pytest.mark.parametrize("name", POSITIONS)
def test_check_length_comes_before_nan(name: str) -> None:
    check_length(config(name), 7)
    if longest(config(name)) is None:
        check_length(config(name), 10**6)
        return
    with pytest.raises(ValueError, match=r"8 tokens needs position 7.*ends at 6.*model.max_positions=8") as caught:
        check_length(config(name), 8)
    assert "\n" not in str(caught.value)
