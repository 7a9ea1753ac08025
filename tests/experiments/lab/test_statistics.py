"""Intervals that cover as often as they say, and tests against figures worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from experiments.lab import statistics
from experiments.lab.statistics import (
    Difference,
    bootstrap_interval,
    holm,
    mean_interval,
    paired_difference,
    pooled_spread,
    smallest_seen,
    verdicts,
)
from transformer.errors import UserError


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_truth_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    samples = rng.normal(7.0, 2.0, (4000, n))
    covered = sum((i := mean_interval(row)).low <= 7.0 <= i.high for row in samples)  # type: ignore[operator]
    assert 0.94 < covered / 4000 < 0.96


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_paired_interval_covers_and_ignores_what_pairs_share(n: int) -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 10, (3000, n))
    a, b = shared + rng.normal(1.0, 1.0, (3000, n)), shared + rng.normal(0.5, 1.0, (3000, n))
    differences = [paired_difference(x, y) for x, y in zip(a, b, strict=True)]
    covered = sum(d.low <= 0.5 <= d.high for d in differences)  # type: ignore[operator]
    assert 0.94 < covered / 3000 < 0.96
    # The shared part is ten times the spread of a difference; unpaired intervals would be as wide.
    assert np.median([d.high - d.low for d in differences]) < 8  # type: ignore[operator]


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    ps = [paired_difference(*rng.normal(size=(2, 4))).p for _ in range(2000)]
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_an_interval_by_hand() -> None:
    # Mean 2, deviation 1, n = 3: half-width 4.30265 / sqrt(3).
    low, high = 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)
    assert mean_interval([1, 2, 3]) == pytest.approx((2, low, high, 3), rel=1e-6)
    found = paired_difference([1, 4, 7], [0, 2, 4])
    assert found[:3] == pytest.approx((2, low, high), rel=1e-6)
    assert found.p == pytest.approx(stats.ttest_rel([1, 4, 7], [0, 2, 4]).pvalue)


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04 times 3 2 1 = .03 .06 .04, made monotone: .03 .06 .06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_holds_the_chance_of_any_false_claim() -> None:
    rng = np.random.default_rng(3)
    claims = [min(holm(row)) < 0.05 for row in rng.uniform(size=(4000, 5)).tolist()]
    assert 0.035 < np.mean(claims) < 0.06


def _sweeps(rng: np.random.Generator, count: int, seeds: int, shifts: list[float]) -> list[dict[str, Difference]]:
    """Simulated sweeps: seeds move all variants alike by 3, and each run on its own by 1; a shift for each variant."""
    shared = rng.normal(70, 3, (count, 1, seeds))
    runs = shared + rng.normal(0, 1, (count, 1 + len(shifts), seeds))
    runs[:, 1:] += np.asarray(shifts)[:, None]
    return [{f"v{i}": paired_difference(own, sweep[0]) for i, own in enumerate(sweep[1:])} for sweep in runs.tolist()]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_equal_configs_come_out_as_not_different(seeds: int) -> None:
    """Of 100 comparisons at least 95, five variants a sweep; and a sweep says anything of any in 5 of 100 at most."""
    said = [verdicts(found, 1) for found in _sweeps(np.random.default_rng(seeds), 2000, seeds, [0.0] * 5)]
    claims = np.array([[kind in ("better", "worse") for kind in each.values()] for each in said])
    assert claims.mean() < 0.05
    assert 0.01 < claims.any(axis=1).mean() < 0.06


@pytest.mark.parametrize("variants", [1, 5])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_difference_of_the_stated_size_is_found_with_the_stated_power(seeds: int, variants: int) -> None:
    size = smallest_seen(math.sqrt(2), seeds, variants)  # a difference of two runs of spread 1
    sweeps = _sweeps(np.random.default_rng(seeds), 3000, seeds, [size] + [0.0] * (variants - 1))
    found = np.mean([verdicts(sweep, 1)["v0"] == "better" for sweep in sweeps])
    assert found == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("n", [3, 4, 10, 30])
def test_power_agrees_with_statsmodels(n: int) -> None:
    size = smallest_seen(2.0, n)
    assert TTestPower().power(size / 2, n, 0.05) == pytest.approx(0.8, abs=1e-6)
    with pytest.raises(ValueError, match="needs two pairs"):
        smallest_seen(1.0, 1)


def test_the_noise_of_a_sweep_is_pooled_by_degrees_of_freedom() -> None:
    a, b = paired_difference([1, 2, 3], [0, 0, 0]), paired_difference([0, 4], [0, 0])
    assert (a.spread, b.spread) == pytest.approx((1.0, math.sqrt(8)))
    assert pooled_spread([a, b]) == pytest.approx(math.sqrt((2 * 1 + 1 * 8) / 3))
    assert pooled_spread([paired_difference([1], [0])]) is None


def test_the_effect_by_hand() -> None:
    # Mean 2, spread 1; J of two degrees of freedom is G(1) / G(1/2) = 1 / sqrt(pi).
    assert paired_difference([1, 2, 3], [0, 0, 0]).effect == pytest.approx(2 / math.sqrt(math.pi))
    assert paired_difference([1, 2], [0, 0]).effect is None, "two seeds do not say"
    assert paired_difference([1, 1, 1], [0, 0, 0]).effect is None, "no spread to measure by"


def test_the_effect_of_few_seeds_is_not_overstated() -> None:
    rng = np.random.default_rng(4)
    effects = [paired_difference(row, [0.0] * 5).effect for row in rng.normal(1.5, 1.0, (4000, 5)).tolist()]
    assert np.mean(effects) == pytest.approx(1.5, abs=0.05)  # type: ignore[type-var]


@pytest.mark.parametrize(("n", "covers"), [(3, 0.75), (5, 0.83), (10, 0.90)])
def test_the_bootstrap_is_worth_what_it_says(n: int, covers: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rows = np.random.default_rng(5).normal(2.0, 1.0, (600, n))
    intervals = [bootstrap_interval(row) for row in rows.tolist()]
    assert np.mean([low <= 2.0 <= high for low, high in intervals]) == pytest.approx(covers, abs=0.04)  # type: ignore[misc]
    if n == 3:
        assert intervals[0] == pytest.approx((rows[0].min(), rows[0].max()))
    assert bootstrap_interval([1.0]) is None
    assert bootstrap_interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1))


def test_verdicts_by_hand() -> None:
    found = {
        "far": paired_difference([9.0, 9.1, 9.2], [0, 0, 0]),
        "near": paired_difference([1.0, 1.4, 2.0], [0, 0, 0]),  # p = 0.039, and 0.078 after Holm's correction
        "same": paired_difference([-1.0, 0.0, 1.5], [0, 0, 0]),
        "alone": paired_difference([5.0], [0]),
    }
    assert verdicts(found, 1) == {"far": "better", "near": "doubtful", "same": "none", "alone": "alone"}
    assert verdicts(found, -1)["far"] == "worse"
    assert verdicts({"near": found["near"]}, 1) == {"near": "better"}


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5]) == (0.5, None, None, 1)
    assert paired_difference([0.5], [0.25]) == (0.25, None, None, None, 1, (0.25,))


def test_equal_differences_leave_no_doubt() -> None:
    assert paired_difference([0.3, 0.3, 0.3], [0.1, 0.1, 0.1]).p == 0.0
    same = paired_difference([0.1, 0.2], [0.1, 0.2])
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_diverged_is_named(bad: float) -> None:
    with pytest.raises(UserError, match=r"test/loss is (nan|inf) in 1 of 3 runs"):
        mean_interval([1.0, bad, 2.0], "test/loss")
    with pytest.raises(UserError, match="diverged"):
        paired_difference([1.0, 2.0], [bad, 2.0])


def test_no_value_and_unequal_lengths_are_told() -> None:
    with pytest.raises(UserError, match="no value of the metric"):
        mean_interval([])
    with pytest.raises(UserError, match="2 values against 1"):
        paired_difference([1, 2], [1])
