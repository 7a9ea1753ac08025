"""Intervals that cover as often as they say, and tests against figures worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import holm, mean_interval, paired_difference
from transformer.config import UserError


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    samples = rng.normal(7.0, 2.0, (4000, n))
    covered = sum((i := mean_interval(row)).low <= 7.0 <= i.high for row in samples)  # type: ignore[operator]
    assert 0.94 < covered / 4000 < 0.96


def test_the_paired_interval_covers_and_ignores_what_pairs_share() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 10, (3000, 3))
    a, b = shared + rng.normal(1.0, 1.0, (3000, 3)), shared + rng.normal(0.5, 1.0, (3000, 3))
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


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5]) == (0.5, None, None, 1)
    assert paired_difference([0.5], [0.25]) == (0.25, None, None, None, 1)


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
