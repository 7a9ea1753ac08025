"""Each encoding against a float64 loop of its paper's formula, the end of a learned table, and what all of them owe."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import ModelConfig
from transformer.model.positions import (
    POSITIONS,
    T5_BUCKETS,
    AlibiBias,
    T5Bias,
    alibi_slopes,
    check_length,
    longest,
    rotation,
    sinusoid,
    t5_bucket,
)
from transformer.platforms import compiling_for

D, H = 6, 3


def rotate(x: jax.Array, positions: jax.Array, interleaved: bool = True) -> jax.Array:
    """What `rotation` makes of the features of heads."""
    return rotation(positions, x.shape[-1], interleaved)(x)


FAR = [0, 1, 2, 3, 7, 50, 511, 512, 1999, 5000, 99_999, 100_000]


def float32_allows(positions: np.ndarray, width: int) -> np.ndarray:
    """The error of each angle p · r in float32, and so of its sine, [L, pairs]: r is rounded, and so is the product,
    each by at most 2^-24 of itself. For the fastest angles that is 6e-6 at position 50, 6e-4 at 5,000 and 0.012 at
    100,000, and a thousandth of it where r is a thousandth."""
    rates = 10000.0 ** (-2 * np.arange((width + 1) // 2) / width)
    return 2 * 2**-24 * np.outer(positions, rates) + 3e-7


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
    positions = np.array(FAR)
    error = np.abs(np.asarray(sinusoid(jnp.asarray(positions), d_model), np.float64) - paper(positions, d_model))
    assert (error <= float32_allows(positions, d_model).repeat(2, axis=1)[:, :d_model]).all()
    # The fastest pair turns by whole numbers, which float32 holds exactly.
    assert error[:, :2].max() <= 3e-7


@pytest.mark.parametrize("d_model", [1, 2, 6, 7, 64, 129])
def test_sinusoid_in_halves_is_marians(d_model: int) -> None:
    """Its table, term by term: column i of the first half sin(p / 10000^(2i/D)), column i of the second the cosine."""
    positions = np.array(FAR)
    table, sines = np.zeros((len(positions), d_model)), (d_model + 1) // 2
    for row, p in enumerate(positions):
        for column in range(d_model):
            i = column if column < sines else column - sines
            angle = int(p) / 10000 ** (2 * i / d_model)
            table[row, column] = math.sin(angle) if column < sines else math.cos(angle)
    error = np.abs(np.asarray(sinusoid(jnp.asarray(positions), d_model, interleaved=False), np.float64) - table)
    assert (error <= np.tile(float32_allows(positions, d_model), 2)[:, :d_model]).all()


def test_sinusoid_is_not_another_table() -> None:
    positions = np.arange(11)
    difference = np.abs(np.asarray(sinusoid(jnp.asarray(positions), 8)) - tensor2tensor(positions, 8))
    assert difference[1:].max(axis=1).min() > 0.5


def test_sinusoid_takes_positions_of_any_shape() -> None:
    positions = np.array([[3, 0, 4], [0, 1, 2]])
    expected = paper(positions.ravel(), 5).reshape(2, 3, 5)
    np.testing.assert_allclose(sinusoid(jnp.asarray(positions), 5), expected, atol=1e-6)


# --- Rotary


PAIRS = {True: lambda i, width: (2 * i, 2 * i + 1), False: lambda i, width: (i, i + width // 2)}
both = pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])


def turned(x: np.ndarray, positions: np.ndarray, interleaved: bool) -> np.ndarray:
    """RoFormer, equation 34, pair by pair, in float64: x is [L, H, K]."""
    out, width = np.zeros(x.shape), x.shape[-1]
    for row, p in enumerate(positions):
        for i in range(width // 2):
            angle = int(p) * 10000.0 ** (-2 * i / width)
            a, b = PAIRS[interleaved](i, width)
            out[row, :, a] = x[row, :, a] * math.cos(angle) - x[row, :, b] * math.sin(angle)
            out[row, :, b] = x[row, :, b] * math.cos(angle) + x[row, :, a] * math.sin(angle)
    return out


def features(width: int, length: int = len(FAR), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, H, width)).astype(np.float32)


@both
@pytest.mark.parametrize("width", [2, 6, 64])
def test_rotate_is_the_papers(width: int, interleaved: bool) -> None:
    positions, x = np.array(FAR), features(width)
    got = np.asarray(rotate(jnp.asarray(x), jnp.asarray(positions), interleaved), np.float64)
    error = np.abs(got - turned(x, positions, interleaved))
    allowed = 2 * np.abs(x).max() * float32_allows(positions, width)
    for i in range(width // 2):
        assert (error[..., list(PAIRS[interleaved](i, width))].max(axis=(1, 2)) <= allowed[:, i]).all(), i


@both
def test_rotate_keeps_the_norm_of_every_pair(interleaved: bool) -> None:
    x = features(6)
    out = np.asarray(rotate(jnp.asarray(x), jnp.asarray(FAR), interleaved))
    for i in range(3):
        pair = list(PAIRS[interleaved](i, 6))
        norms = (np.linalg.norm(y[..., pair], axis=-1) for y in (out, x))
        np.testing.assert_allclose(*norms, rtol=1e-6)


@both
def test_rotate_leaves_position_0_and_moves_every_other(interleaved: bool) -> None:
    x = features(6, 2)
    np.testing.assert_array_equal(rotate(jnp.asarray(x), jnp.zeros(2, jnp.int32), interleaved), x)
    out = np.asarray(rotate(jnp.asarray(x), jnp.ones(2, jnp.int32), interleaved))
    assert (np.abs(out - x).max(axis=(1, 2)) > 0.1).all()
    # The direction of the turn: from the first feature of a pair towards the second.
    one = jnp.asarray([[[1.0, 0.0]]])
    np.testing.assert_allclose(
        rotate(one, jnp.ones(1, jnp.int32), interleaved)[0, 0], [math.cos(1), math.sin(1)], atol=1e-6
    )


@both
def test_scores_depend_on_the_difference_of_positions(interleaved: bool) -> None:
    rng = np.random.default_rng(0)
    q, k = features(8, 20, seed=1), features(8, 20, seed=2)
    at, to = rng.integers(0, 40, 20), rng.integers(0, 40, 20)

    def scores(shift: int, apart: int = 0) -> np.ndarray:
        moved = lambda x, p: np.asarray(rotate(jnp.asarray(x), jnp.asarray(p), interleaved))  # noqa: E731
        return (moved(q, at + shift) * moved(k, to + shift + apart)).sum(axis=-1)

    np.testing.assert_allclose(scores(57), scores(0), atol=2e-4)
    assert np.abs(scores(0, apart=1) - scores(0)).max() > 0.5


def test_the_two_conventions_differ_by_an_order_of_features() -> None:
    x, positions = jnp.asarray(features(10)), jnp.asarray(FAR)
    order = np.r_[0:10:2, 1:10:2]
    np.testing.assert_allclose(
        rotate(x[..., order], positions, interleaved=False),
        rotate(x, positions, interleaved=True)[..., order],
        rtol=1e-6,
    )
    assert float(jnp.abs(rotate(x, positions, False) - rotate(x, positions, True)).max()) > 0.5


def test_rotary_rows_are_the_two_conventions() -> None:
    x, positions = jnp.asarray(features(D // H))[None], jnp.asarray(FAR)[None]
    for name, interleaved in (("rotary", True), ("rotary-half", False)):
        found = POSITIONS[name](config(name), False).rotation(positions)(x)
        np.testing.assert_array_equal(found, rotate(x, positions, interleaved))


def test_the_base_of_the_angles_is_a_key() -> None:
    x, positions = jnp.asarray(features(6))[None], jnp.asarray(FAR)[None]
    far = dataclasses.replace(config("rotary"), rotary_theta=500_000.0, head_dim=6)
    found = POSITIONS["rotary"](far, False).rotation(positions)(x)
    angle = np.asarray(FAR, np.float64)[:, None] * 500_000.0 ** (-2 * np.arange(3) / 6)
    a, b = np.asarray(x, np.float64)[0, ..., ::2], np.asarray(x, np.float64)[0, ..., 1::2]
    sin, cos = np.sin(angle)[:, None], np.cos(angle)[:, None]
    np.testing.assert_allclose(found[0, ..., ::2], a * cos - b * sin, atol=0.02)
    np.testing.assert_allclose(found[0, ..., 1::2], a * sin + b * cos, atol=0.02)


@both
def test_rotate_turns_in_float32(interleaved: bool) -> None:
    """bfloat16 has three digits, too few for an angle: only the result is rounded."""
    x = jnp.asarray(features(6)).astype(jnp.bfloat16)
    out = rotate(x, jnp.asarray(FAR), interleaved)
    assert out.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.float32), jnp.asarray(FAR), interleaved).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out.astype(jnp.float32), exact.astype(jnp.float32))


@both
@pytest.mark.parametrize("width", [1, 7])
def test_an_odd_head_has_no_pairs(width: int, interleaved: bool) -> None:
    with pytest.raises(ValueError, match=f"a head has {width}: make head_dim even"):
        rotate(jnp.zeros((2, H, width)), jnp.arange(2), interleaved)


# --- Biases


def authors_slopes(n: int) -> list[float]:
    """The rule of Press et al.'s code: a geometric series from a start that is its ratio, and for n between two powers
    of two that of the lower, then every other one of the higher."""
    if math.log2(n).is_integer():
        ratio = 2 ** -(2 ** -(math.log2(n) - 3))
        return [ratio * ratio**i for i in range(n)]
    lower = 2 ** math.floor(math.log2(n))
    return authors_slopes(lower) + authors_slopes(2 * lower)[0::2][: n - lower]


def test_alibi_slopes() -> None:
    np.testing.assert_array_equal(alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])
    for n in (1, 2, 4, 16, 32):
        np.testing.assert_allclose(alibi_slopes(n), [2 ** (-8 * (h + 1) / n) for h in range(n)], rtol=1e-6)
    for n in (3, 6, 12, 20):
        assert alibi_slopes(n).shape == (n,)
        np.testing.assert_allclose(alibi_slopes(n), authors_slopes(n), rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(6), [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8], rtol=1e-6)


Q_AT, K_AT = np.array([[3, 0, 40], [0, 1, 2]]), np.array([[0, 1, 2, 9, 300], [5, 4, 3, 0, 1]])


def test_alibi_is_minus_slope_times_distance() -> None:
    bias = AlibiBias(6).bias(jnp.asarray(Q_AT), jnp.asarray(K_AT))
    assert bias.shape == (2, 6, 3, 5)
    for b, h, i, j in np.ndindex(*bias.shape):
        expected = -authors_slopes(6)[h] * abs(int(K_AT[b, j]) - int(Q_AT[b, i]))
        assert float(bias[b, h, i, j]) == pytest.approx(expected, rel=1e-6)


def t5_formula(offset: int, causal: bool, buckets: int = 32, farthest: int = 128) -> int:
    """`_relative_position_bucket` of the authors' code, for one offset and in float64."""
    first, distance = 0, -offset
    if causal:
        distance = max(distance, 0)
    else:
        buckets //= 2
        first = buckets if distance < 0 else 0
        distance = abs(distance)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    # The slack is for quotients of logarithms that are whole numbers: 16, 32 and 64 among 8 ... 128.
    steps = math.log(distance / exact) / math.log(farthest / exact) * (buckets - exact)
    return first + min(exact + math.floor(steps + 1e-9), buckets - 1)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_t5_buckets_are_the_authors(causal: bool) -> None:
    offsets = np.arange(-300, 301)
    expected = [t5_formula(int(offset), causal) for offset in offsets]
    np.testing.assert_array_equal(t5_bucket(jnp.asarray(offsets), causal), expected)
    # All 32 are taken; of both directions 0 ahead is none, since offset 0 counts as behind.
    assert set(expected) == set(range(32)) - (set() if causal else {16})


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_t5_takes_the_entry_of_the_bucket(causal: bool) -> None:
    table = np.random.default_rng(0).normal(size=(T5_BUCKETS, H)).astype(np.float32)
    bias = T5Bias(jnp.asarray(table), causal).bias(jnp.asarray(Q_AT), jnp.asarray(K_AT))
    assert bias.shape == (2, H, 3, 5)
    for b, h, i, j in np.ndindex(*bias.shape):
        assert float(bias[b, h, i, j]) == table[t5_formula(int(K_AT[b, j]) - int(Q_AT[b, i]), causal), h]


@pytest.mark.parametrize("causal", [False, True])
def test_t5_on_an_accelerator_is_the_same_without_gather_or_scatter(causal: bool) -> None:
    """Values to the bit, and the table's gradient."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(T5_BUCKETS, H)), jnp.float32)
    weights = jnp.asarray(
        np.random.default_rng(1).normal(size=(len(Q_AT), H, Q_AT.shape[1], K_AT.shape[1])), jnp.float32
    )

    def run(table: jax.Array) -> Any:
        bias = lambda table: T5Bias(table, causal).bias(jnp.asarray(Q_AT), jnp.asarray(K_AT))  # noqa: E731
        return bias(table), jax.grad(lambda table: (bias(table) * weights).sum())(table)

    expected = run(table)
    for platform in ("gpu", "tpu"):
        with compiling_for(platform):
            found, text = run(table), jax.jit(run).lower(table).as_text()
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)
        assert "stablehlo.gather" not in text
        assert "stablehlo.scatter" not in text


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_t5s_module_gives_its_table_and_its_direction(causal: bool) -> None:
    module = POSITIONS["t5"](config("t5"), causal)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1, D)), jnp.zeros((1, 1), jnp.int32))
    (table,) = jax.tree.leaves(params)
    bias = module.apply(params, method="score")
    assert table.shape == (32, H)
    assert bias.causal == causal
    np.testing.assert_array_equal(bias.table, table)


# --- What every encoding owes


def config(positions: str, rows: int = 7) -> ModelConfig:
    return ModelConfig(positions=positions, d_model=D, num_heads=H, max_positions=rows)


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


def told(name: str, positions: np.ndarray) -> np.ndarray:
    """All that an encoding tells of positions: what it adds and rotates, and its scores from position 0. [L, ...]"""
    module, params = encoder(name)
    places = jnp.asarray(positions)[None]
    added = module.apply(params, jnp.zeros((1, len(positions), D)), places)[0]
    ones, rotation = jnp.ones((1, len(positions), 1, D // H)), module.apply(params, places, method="rotation")
    moved = (ones if rotation is None else rotation(ones))[0, :, 0] - 1
    score, nought = module.apply(params, method="score"), jnp.zeros((1, H, 1, len(positions)))
    scores = (nought if score is None else score(nought, jnp.zeros((1, 1), jnp.int32), places))[0, :, 0].T
    return np.concatenate([added, moved, scores], axis=1)


@pytest.mark.parametrize("name", POSITIONS)
def test_an_encoding_tells_positions_apart_or_nothing(name: str) -> None:
    at = told(name, np.arange(7))
    if name == "none":
        assert not at.any()
        assert not jax.tree.leaves(encoder(name)[1])
    else:
        apart = np.abs(at[:, None] - at[None]).max(axis=-1)
        assert apart[~np.eye(7, dtype=bool)].min() > 1e-2


def test_an_encoding_works_at_one_place() -> None:
    """It adds to the embeddings, or turns, or biases; and only tables have weights."""
    parts = {
        "sinusoidal": 0,
        "sinusoidal-half": 0,
        "learned": 0,
        "rotary": 1,
        "rotary-half": 1,
        "alibi": 2,
        "t5": 2,
        "none": None,
    }
    assert parts.keys() == POSITIONS.keys()
    for name, part in parts.items():
        at = np.split(told(name, np.arange(7)), [D, D + 2], axis=1)
        assert [bool(x.any()) for x in at] == [i == part for i in range(3)], name
        assert len(jax.tree.leaves(encoder(name)[1])) == (name in ("learned", "t5")), name


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


def test_learned_positions_that_are_constants_of_a_compiled_program() -> None:
    """Their values are known while it is traced, so they are checked there."""
    module = POSITIONS["learned"](ModelConfig(positions="learned", d_model=4, max_positions=7))
    x, positions = jnp.zeros((1, 3, 4)), jnp.arange(3)[None]
    params = module.init(jax.random.key(0), x, positions)
    found = jax.jit(lambda params: module.apply(params, x, positions))(params)
    np.testing.assert_array_equal(found, params["params"]["table"][None, :3])
    with pytest.raises(ValueError, match="needs position 7"):
        jax.jit(lambda params, far=positions + 5: module.apply(params, x, far))(params)
