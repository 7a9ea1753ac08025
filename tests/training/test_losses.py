"""Losses against float64 sums over explicit distributions, and the sliced output loss against the whole one."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.platforms import PLATFORMS, Platform, compiling_for
from transformer.training import losses
from transformer.training.losses import _slice_length, cross_entropy, output_cross_entropy, squared_error
from transformer.training.token_losses import token_losses

CHUNK = PLATFORMS["cpu"].loss_tokens


def _batch(seed: int, rows: int, length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (rows, length, vocabulary)).astype(np.float32)
    targets = random.integers(0, vocabulary, (rows, length)).astype(np.int32)
    weights = (random.random((rows, length)) < 0.6).astype(np.float32)
    return logits, targets, weights


def _explicit(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, smoothing: float) -> dict[str, np.ndarray]:
    """-Σ q log p of each row, token by token, q an explicit distribution that sums to 1."""
    vocabulary = logits.shape[-1]
    sums = {name: np.zeros(len(logits)) for name in ("loss", "nll", "token_accuracy")}
    for row, place in np.argwhere(weights > 0):
        z = logits[row, place].astype(np.float64)
        log_p = z - np.log(np.exp(z - z.max()).sum()) - z.max()
        q = np.full(vocabulary, smoothing / vocabulary)
        q[targets[row, place]] += 1 - smoothing
        assert q.sum() == pytest.approx(1)
        sums["loss"][row] -= (q * log_p).sum()
        sums["nll"][row] -= log_p[targets[row, place]]
        sums["token_accuracy"][row] += np.argmax(z) == targets[row, place]
    return sums


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_the_sum_over_an_explicit_distribution(smoothing: float) -> None:
    logits, targets, weights = _batch(1, 3, 7, 11)
    expected = _explicit(logits, targets, weights, smoothing)
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights), smoothing)
    assert set(found) == set(expected)
    for name, (total, weight) in found.items():
        np.testing.assert_allclose(total, expected[name], rtol=2e-6, err_msg=name)
        np.testing.assert_array_equal(weight, weights.sum(axis=1))


def test_the_smoothed_loss_is_least_where_the_model_gives_the_smoothed_distribution() -> None:
    """So the smoothing is spread over the whole vocabulary, the target included (its share is 1 - ε + ε / V)."""
    vocabulary, smoothing = 5, 0.2
    q = np.full(vocabulary, smoothing / vocabulary)
    q[3] += 1 - smoothing
    logits = jnp.log(jnp.asarray(q, jnp.float32))[None, None]
    gradient = jax.grad(lambda z: cross_entropy(z, jnp.array([[3]]), jnp.ones((1, 1)), smoothing)["loss"][0][0])(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("vocabulary", [13, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_pass_gives_what_several_give(smoothing: float, vocabulary: int) -> None:
    """The sums of accelerators: values, gradients, forward mode and second derivatives; large, tied, infinite and NaN
    logits, and columns that are no tokens."""
    logits, _, _ = _batch(5, 1, 9, 13)
    flat = logits[0].copy()
    flat[1] *= 1e4
    flat[2] = 0
    flat[3, 4], flat[4, 4], flat[5, :] = -np.inf, np.nan, -1e38
    targets, direction = jnp.arange(9), jnp.asarray(np.random.default_rng(6).normal(size=flat.shape), jnp.float32)

    def all_of(z: jax.Array) -> Any:
        of = lambda z: token_losses(z, targets, smoothing, vocabulary)  # noqa: E731
        summed = lambda z: of(z).loss.sum()  # noqa: E731
        pushed = jax.jvp(lambda z: of(z)[:3], (z,), (direction,))
        return of(z), jax.grad(summed)(z), pushed, jax.jvp(jax.grad(summed), (z,), (direction,))

    expected = all_of(jnp.asarray(flat))
    with compiling_for("gpu"):
        found = all_of(jnp.asarray(flat))
    for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert not np.any(expected[1][:, vocabulary:])
    wide = jax.nn.log_softmax(jnp.asarray(flat[0, :vocabulary]))
    np.testing.assert_allclose(expected[0].nll[0], -wide[0], rtol=1e-6)


def test_large_logits_stay_finite() -> None:
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    found = cross_entropy(logits, jnp.array([[1]]), jnp.ones((1, 1)), 0.1)
    assert found["nll"][0] == 2e4
    assert np.isfinite(found["loss"][0])


def test_ties_count_as_right() -> None:
    found = cross_entropy(jnp.zeros((1, 2, 3)), jnp.array([[0, 2]]), jnp.ones((1, 2)))
    assert losses.means(jax.tree.map(jnp.sum, found))["token_accuracy"] == 1


# Around the slice: one slice, a whole number of slices, a rest, slices of one token, more rows than a slice has tokens.
SHAPES = [
    (3, 5, 0.0),
    (2, CHUNK // 2 + 1, 0.1),
    (7, 3 * (CHUNK // 7) + 11, 0.0),
    pytest.param(2, CHUNK, 0.1, marks=pytest.mark.slow),
    pytest.param(CHUNK + 1, 3, 0.1, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("rows", "length", "smoothing"), SHAPES)
def test_the_sliced_loss_is_the_whole_one(
    rows: int, length: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLATFORMS, "cpu", dataclasses.replace(PLATFORMS["cpu"], loss_logits=0))
    random = np.random.default_rng(rows * 1000 + length)
    x = jnp.asarray(random.normal(size=(rows, length, 3)), jnp.float32)
    table = jnp.asarray(random.normal(size=(13, 3)), jnp.float32)
    bias = jnp.asarray(random.normal(size=13), jnp.float32)
    _, targets, weights = _batch(2, rows, length, 13)
    weights[: rows // 2] = 0  # rows of padding only
    targets, weights = jnp.asarray(targets), jnp.asarray(weights)

    def whole(x: jax.Array, table: jax.Array, bias: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        found = cross_entropy(x @ table.T + bias, targets, weights, smoothing)
        found["loss"] = jax.tree.map(jnp.sum, found["loss"])
        return 1.7 * found["loss"][0], found

    def sliced(x: jax.Array, table: jax.Array, bias: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        found = output_cross_entropy(x, table, bias, targets, weights, smoothing)
        return 1.7 * found["loss"][0], found

    (_, expected), expected_gradients = jax.jit(jax.value_and_grad(whole, (0, 1, 2), has_aux=True))(x, table, bias)
    (_, found), gradients = jax.jit(jax.value_and_grad(sliced, (0, 1, 2), has_aux=True))(x, table, bias)
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
    # Without a gradient the loss takes another path: custom_vjp's primal.
    plain = output_cross_entropy(x, table, bias, targets, weights, smoothing)
    np.testing.assert_allclose(plain["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], expected_gradients[0], atol=1e-5)
    np.testing.assert_allclose(gradients[1], expected_gradients[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[2], expected_gradients[2], rtol=1e-4, atol=1e-4)
    assert not np.any(gradients[0][: rows // 2])


def test_an_accelerator_has_few_slices_of_like_length() -> None:
    """GPT-2 at 32 rows of 1,024 a device; and 1 position at least, however large the vocabulary and the batch."""
    for platform, length in (("gpu", 256), ("tpu", 128)):
        with compiling_for(platform):
            assert _slice_length(32, 1024, 50_257) == length
            needed = -(-32 * 1024 * 50_257 * 4 // PLATFORMS[platform].loss_bytes)
            assert 1024 // length in range(needed, 2 * needed)
            assert _slice_length(32, 1021, 50_257) == -(-1021 // needed)  # a prime: the last slice is filled up
            assert _slice_length(1, 1, 11) == _slice_length(4096, 7, 1 << 20) == 1
            assert _slice_length(3, 5, 11) == 5
    assert _slice_length(32, 1024, 50_257) == CHUNK // 32


def test_a_small_vocabulary_needs_no_slices_on_a_processor() -> None:
    assert _slice_length(12, 64, 65) == 64
    assert _slice_length(128, 16, 6000) == 4
    assert _slice_length(128, 16, 3000) == 8


@pytest.mark.parametrize("positions", [1, 3, 5])
def test_slices_by_bytes_add_up(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the loss and the gradients of one slice, with rows of the table that are no tokens, too."""
    rows, length, vocabulary = 3, 11, 13
    random = np.random.default_rng(positions)
    x, table = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((rows, length, 4), (16, 4)))
    _, targets, weights = map(jnp.asarray, _batch(4, rows, length, vocabulary))

    def grown(loss_bytes: int) -> Any:
        monkeypatch.setitem(PLATFORMS, "gpu", Platform(loss_bytes=loss_bytes))
        with compiling_for("gpu"):
            loss = lambda x, table: output_cross_entropy(x, table, None, targets, weights, 0.1, vocabulary)  # noqa: E731
            program = jax.value_and_grad(
                lambda *arrays: (loss(*arrays)["loss"][0], loss(*arrays)), (0, 1), has_aux=True
            )
            return program(x, table)

    for left, right in zip(*map(jax.tree.leaves, (grown(4 * 16 * rows * positions), grown(1 << 30))), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def test_a_batch_of_padding_only_adds_nothing_and_has_no_mean() -> None:
    x, table, zeros = jnp.ones((2, 3, 4)), jnp.ones((5, 4)), jnp.zeros((2, 3))
    found = output_cross_entropy(x, table, None, zeros.astype(jnp.int32), zeros)
    summed = jax.tree.map(jnp.sum, found)
    assert summed == {"loss": (0, 0), "nll": (0, 0), "token_accuracy": (0, 0)}
    assert all(map(math.isnan, losses.means(summed).values()))
    loss = lambda x: output_cross_entropy(x, table, None, zeros.astype(jnp.int32), zeros)["loss"][0]  # noqa: E731
    assert not np.any(jax.grad(loss)(x))


@pytest.mark.parametrize("cuts", [[3], [1, 2], [0, 5, 6]])
def test_sums_add_over_parts(cuts: list[int]) -> None:
    """The metrics of a batch are those of its rows in any grouping: added, and divided once."""
    logits, targets, weights = _batch(3, 6, 4, 5)
    compute = jax.jit(lambda *batch: jax.tree.map(jnp.sum, cross_entropy(*batch, 0.1)))
    whole = losses.means(compute(logits, targets, weights))
    total: dict[str, losses.Pair] = {}
    for rows in np.split(np.arange(6), cuts):
        if len(rows):
            part = compute(logits[rows], targets[rows], weights[rows])
            total = losses.add(total, part) if total else part
    assert losses.means(total) == pytest.approx(whole, rel=1e-6)


def test_squared_errors_are_of_rows_that_count() -> None:
    random = np.random.default_rng(7)
    forecasts, targets = random.normal(size=(2, 3, 5, 2)).astype(np.float32)
    found = squared_error(jnp.asarray(forecasts), jnp.asarray(targets), jnp.array([True, False, True]))
    for name, errors in (("loss", (forecasts - targets) ** 2), ("mae", np.abs(forecasts - targets))):
        expected = [errors[0].sum(), 0, errors[2].sum()]
        np.testing.assert_allclose(found[name][0], expected, rtol=1e-6)
        np.testing.assert_array_equal(found[name][1], [10, 0, 10])
