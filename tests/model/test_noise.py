"""Dropout masks: their statistics, and that they depend on what they should and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer.model.noise import Dropout, Noise, keep_mask, mix, step_noise

ROWS, LENGTH, WIDTH = 16, 61, 127  # 123,952 elements
RATE = 0.3
# Every figure below is deterministic, so a bound either holds for good or does not; five standard deviations leave one
# chance in a million to a good hash, for each of some hundred figures.
SIGMAS = 5


def mask(
    seed: int = 1, step: int = 2, path: str = "encoder/layer_0/dropout", rate: float = RATE, first_row: int = 0
) -> np.ndarray:
    noise = step_noise(seed, step, jnp.arange(first_row, first_row + ROWS))
    return np.asarray(keep_mask(noise, path, (ROWS, LENGTH, WIDTH), rate))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """In standard deviations of the correlation of independent bits, 1 / sqrt(n)."""
    x, y = x.ravel().astype(float), y.ravel().astype(float)
    return float(np.corrcoef(x, y)[0, 1] * np.sqrt(x.size))


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_the_rate_is_binomial(rate: float) -> None:
    """In all, for every row, every position and every feature."""
    dropped = ~mask(rate=rate)
    for axes in [(0, 1, 2), (1, 2), (0, 2), (0, 1)]:
        n = np.prod([dropped.shape[axis] for axis in axes])
        away = np.abs(dropped.mean(axis=axes) - rate) / np.sqrt(rate * (1 - rate) / n)
        # Where few are expected, a binomial has longer tails than a normal.
        assert np.max(away) < (SIGMAS if n * min(rate, 1 - rate) > 20 else 9)


def test_the_extremes() -> None:
    assert mask(rate=0.0).all()
    assert not mask(rate=1.0).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_independent(axis: int) -> None:
    """At all distances along each axis, by the autocorrelation of a mask of 2 million elements, without wrapping."""
    noise = step_noise(1, 2, jnp.arange(128))
    found = np.moveaxis(np.asarray(keep_mask(noise, "encoder/layer_0/dropout", (128, 128, 128), RATE)), axis, -1)
    length = found.shape[-1]
    spectrum = np.fft.rfft((found - (1 - RATE)) / np.sqrt(RATE * (1 - RATE)), 2 * length)
    summed = np.fft.irfft((np.abs(spectrum) ** 2).sum(axis=(0, 1)))[1:length]
    pairs = found.size - np.arange(1, length) * (found.size // length)
    assert np.abs(summed / np.sqrt(pairs)).max() < SIGMAS


def test_diagonals_are_independent() -> None:
    """A hash that adds its counters up repeats along diagonals."""
    found = mask()
    for row, position, feature in [(1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]:
        shifted = np.roll(found, (row, position, feature), (0, 1, 2))
        backwards = np.roll(found, (row, -position, feature), (0, 1, 2))
        assert abs(correlation(found, shifted)) < SIGMAS
        assert abs(correlation(found, backwards)) < SIGMAS


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 0},
        {"seed": 2},
        {"step": 1},
        {"step": 3},
        {"step": 2 + 2**16},
        {"seed": 2, "step": 1},
        {"path": "encoder/layer_1/dropout"},
        {"path": "decoder/layer_0/dropout"},
        {"path": "encoder/layer_0/dropouu"},
        {"first_row": ROWS},
        {"first_row": 2**20},
    ],
)
def test_another_seed_step_layer_or_row_has_another_mask(other: dict) -> None:
    assert abs(correlation(mask(), mask(**other))) < SIGMAS


def test_seeds_and_steps_do_not_share_their_masks() -> None:
    """The noise of 200 x 200 seeds and steps: no equal keys, and in each word as few equal pairs as 32 random
    bits have (about 0.2 expected)."""
    seeds, steps = (x.ravel() for x in jnp.meshgrid(jnp.arange(200), jnp.arange(200)))
    of_one = lambda seed, step: jax.random.key_data(step_noise(seed, step, jnp.arange(1)).key)  # noqa: E731
    key = jax.vmap(of_one)(seeds, steps).T
    for numbers in map(np.ravel, map(np.asarray, key)):
        assert numbers.size - np.unique(numbers).size <= 4
    assert np.unique(np.stack(key).reshape(2, -1), axis=1).shape[1] == seeds.size


def test_mix_fills_every_byte() -> None:
    """Chi-square of each byte of 200,000 hashed counters against the uniform, at five standard deviations."""
    counters = np.arange(200_003, dtype=np.uint32)
    for stride in (1, 0x1000, 0x9E3779B9):
        hashed = np.asarray(mix(jnp.asarray(counters * np.uint32(stride))))
        for shift in (0, 8, 16, 24):
            counts = np.bincount((hashed >> shift) & 255, minlength=256)
            expected = len(counters) / 256
            chi_square = ((counts - expected) ** 2 / expected).sum()
            # A mixer of counters may be more even than chance, but not less.
            assert chi_square < 255 + SIGMAS * np.sqrt(2 * 255)


def test_mix_flips_half_of_the_bits() -> None:
    """Each input bit flips each output bit in about half of 4,096 cases."""
    x = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    flips = np.stack(
        [np.asarray(mix(jnp.asarray(x))) ^ np.asarray(mix(jnp.asarray(x ^ np.uint32(1 << b)))) for b in range(32)]
    )
    share = ((flips[..., None] >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=1)
    assert np.abs(share - 0.5).max() < 0.1


def test_mix_is_a_bijection_on_counters() -> None:
    assert np.unique(np.asarray(mix(jnp.arange(2**18, dtype=jnp.uint32)))).size == 2**18


# --- At the size of a real batch: 480 rows of 1,024 positions and 768 features


def part(rows: int, length: int, width: int, seed: int = 1, step: int = 2, path: str = "self/dropout") -> np.ndarray:
    """A corner of the mask, each bit with probability 1/2."""
    noise = step_noise(seed, step, jnp.arange(rows)).at("decoder/layer", 3)
    return np.asarray(jax.jit(lambda noise: keep_mask(noise, path, (rows, length, width), 0.5))(noise))


def words(bits: np.ndarray) -> np.ndarray:
    """The 64 bits from each place of the last axis on."""
    found, size = bits.astype(np.uint64), 1
    while size < 64:
        found = found[..., :-size] | (found[..., size:] << np.uint64(size))
        size *= 2
    return found


# The axis of a run -> all first words along it, and a few whole lines.
CORNERS = {
    "feature": (2, (480, 1024, 64), (2, 1024, 768)),
    "position": (1, (480, 64, 256), (2, 1024, 256)),
    "row": (0, (64, 256, 256), (480, 256, 4)),
}


@pytest.mark.parametrize("axis", CORNERS)
def test_no_run_of_bits_stands_twice(axis: str) -> None:
    """Among 10^11 pairs of 64 independent bits none are equal. Where the places of a mask lie on one line (position and
    feature times a constant, say), shifted runs of hundreds of bits are equal in thousands of pairs of rows."""
    along, first, whole = CORNERS[axis]
    heads = words(np.moveaxis(part(*first), along, -1)).ravel()
    assert np.unique(heads).size == heads.size
    for other in ({}, {"seed": 2}, {"step": 3}, {"path": "cross/dropout"}):
        lines = words(np.moveaxis(part(*whole, **other), along, -1))
        lines = lines if other else lines[..., 1:]  # without those of the heads themselves
        assert heads.size * lines.size > 2e10
        assert not np.isin(lines, heads).any()


@pytest.mark.parametrize("axis", CORNERS)
def test_neighbours_of_any_pattern_are_as_frequent(axis: str) -> None:
    """Chi-square of eight neighbouring bits against the uniform distribution."""
    along, first, _ = CORNERS[axis]
    counts = np.bincount(np.packbits(part(*first), axis=along).ravel(), minlength=256)
    expected = counts.sum() / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < SIGMAS * np.sqrt(2 * 255)


# --- The same mask wherever it is made


SHAPE = (ROWS, 5, 7)


def of_rows(rows: jax.Array, seed: int | jax.Array = 3, step: int | jax.Array = 4) -> jax.Array:
    return keep_mask(step_noise(seed, step, rows), "decoder/dropout", (rows.shape[0], *SHAPE[1:]), RATE)


def test_a_micro_batch_has_its_rows_of_the_mask() -> None:
    whole = np.asarray(of_rows(jnp.arange(ROWS)))
    for rows in (np.arange(4, 8), np.array([11]), np.array([5, 2, 13])):
        np.testing.assert_array_equal(of_rows(jnp.asarray(rows)), whole[rows])


def test_a_longer_row_or_a_wider_model_has_the_same_mask_within() -> None:
    noise = step_noise(3, 4, jnp.arange(ROWS))
    whole = np.asarray(keep_mask(noise, "decoder/dropout", (ROWS, 11, 13), RATE))
    np.testing.assert_array_equal(of_rows(jnp.arange(ROWS)), whole[:, :5, :7])


def test_vmap_has_the_same_masks() -> None:
    seeds = jnp.arange(3, dtype=jnp.uint32)
    rows = jnp.arange(ROWS)
    stacked = np.asarray(jax.vmap(lambda seed: of_rows(rows, seed, 9))(seeds))
    for seed in range(3):
        np.testing.assert_array_equal(stacked[seed], of_rows(rows, seed, 9))
    micro = jax.vmap(of_rows)(rows.reshape(4, 4))
    np.testing.assert_array_equal(micro.reshape(SHAPE), of_rows(rows))


def test_eight_devices_have_the_same_mask() -> None:
    assert len(jax.devices()) == 8
    mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    rows = jnp.arange(ROWS)
    sharded = jax.jit(of_rows, in_shardings=split, out_shardings=split)(rows)
    assert len(sharded.addressable_shards) == 8
    assert sharded.addressable_shards[0].data.shape == (2, 5, 7)
    np.testing.assert_array_equal(sharded, of_rows(rows))


# --- The module


X = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, LENGTH, WIDTH)) + 1, jnp.float32)


def test_without_noise_nothing_is_dropped() -> None:
    assert Dropout(0.9).apply({}, X, None) is X
    np.testing.assert_array_equal(Dropout(0.0).apply({}, X, step_noise(0, 0, jnp.arange(ROWS))), X)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_mean_is_kept(rate: float) -> None:
    noise = step_noise(0, 0, jnp.arange(ROWS))
    out = np.asarray(Dropout(rate).apply({}, X, noise))
    kept = out != 0
    np.testing.assert_allclose(out[kept], np.asarray(X)[kept] / (1 - rate), rtol=1e-6)
    deviation = np.sqrt(rate / (1 - rate) * float((X**2).mean()) / X.size)
    assert abs(out.mean() - float(X.mean())) < SIGMAS * deviation
    np.testing.assert_array_equal(out, Dropout(rate).apply({}, X, noise))


def test_noise_is_a_pytree_that_jit_takes() -> None:
    noise = step_noise(1, 2, jnp.arange(ROWS))
    assert isinstance(jax.tree.map(lambda x: x, noise), Noise)
    found = jax.jit(lambda n: Dropout(RATE).apply({}, X, n))(noise)
    np.testing.assert_allclose(found, Dropout(RATE).apply({}, X, noise), rtol=1e-6)
