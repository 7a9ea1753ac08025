"""Intervals and tests over seeds: few, textbook, and each says what it assumes."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from transformer.errors import UserError

LEVEL = 0.95  # of every interval in a report
ALPHA = 1 - LEVEL  # of every test: how often nothing at all is called a difference
POWER = 0.8  # how often a difference of the size that is called visible is found
RESAMPLES = 9_999  # of the bootstrap; its bounds are those of the same seeds every time


class Interval(NamedTuple):
    """A mean and its two-sided interval, in the unit of the values; no bounds where there is one value."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """Mean of a - b over pairs, its interval and the two-sided p; None where n = 1 gives none.

    `pairs` are the differences themselves, one a seed, shape [n].
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    pairs: tuple[float, ...]

    @property
    def spread(self) -> float | None:
        """Standard deviation of the differences over seeds; None of one, 0 where all are equal."""
        return _spread(np.asarray(self.pairs)) if self.n > 1 else None

    @property
    def effect(self) -> float | None:
        """Cohen's d_z, mean over spread, times Hedges' correction for few seeds (1981): J = G(k/2) / (G((k-1)/2)
        sqrt(k/2)) of k = n - 1 degrees of freedom, 0.56 for three seeds. None below three, or without any spread."""
        if self.n < 3 or not self.spread:
            return None
        k = self.n - 1
        return self.mean / self.spread * math.gamma(k / 2) / (math.gamma((k - 1) / 2) * math.sqrt(k / 2))


def mean_interval(values: Sequence[float], name: str = "the metric") -> Interval:
    """Mean of independent runs and its Student t interval, n - 1 degrees of freedom.

    With three seeds the interval is 4.3 standard errors wide to each side: that is what three seeds are worth.

    Args:
        values: one figure a seed, shape [n], n >= 1.
        name: what is measured, for the message.

    Raises:
        UserError: no value, or one that is NaN or infinite.
    """
    array = _finite(values, name)
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, None, None, 1)
    half = _half_width(array)
    return Interval(mean, mean - half, mean + half, int(array.size))


def paired_difference(a: Sequence[float], b: Sequence[float], name: str = "the metric") -> Difference:
    """Mean of a - b, its Student t interval and the paired t test's p: a[i] and b[i] share a seed.

    Pairs share parameters at step 0, batches and dropout masks, so that what seeds do to both alike cancels.
    If all differences are equal there is no spread to judge them by: p is 1 when they are 0, and 0 otherwise.

    Raises:
        UserError: a NaN or an infinite value, no pair, or sequences of unequal length.
    """
    if len(a) != len(b):
        raise UserError(
            f"{name} has {len(a)} values against {len(b)}: a paired difference needs the same seeds on both sides."
        )
    delta = _finite(a, name) - _finite(b, name)
    mean = float(delta.mean())
    pairs = tuple(delta.tolist())
    if delta.size == 1:
        return Difference(mean, None, None, None, 1, pairs)
    half = _half_width(delta)
    if half == 0.0:
        p = 1.0 if mean == 0.0 else 0.0
    else:
        t = mean / (_spread(delta) / math.sqrt(delta.size))
        p = float(2 * special.stdtr(delta.size - 1, -abs(t)))
    return Difference(mean, mean - half, mean + half, p, int(delta.size), pairs)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean of values [n]; None for one value.

    It assumes no normal spread, and pays for it where seeds are few: of three values it reaches from the smallest to
    the largest, which holds the true mean 75 % of the time, of five about 83 % and of ten about 90 %, where 95 % is
    meant (the tests simulate it). It is worth something as a second opinion from ten seeds on.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return None
    if _spread(array) == 0.0:
        return float(array.mean()), float(array.mean())
    found = stats.bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given: the k-th smallest of m is multiplied by m - k + 1.

    Controls the chance of any false claim among the m comparisons, however they depend on each other.
    """
    adjusted = [0.0] * len(pvalues)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = running
    return adjusted


def adjusted(found: Mapping[str, Difference]) -> dict[str, float]:
    """Holm's p over the comparisons that have one."""
    known = {name: d.p for name, d in found.items() if d.p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def verdicts(found: Mapping[str, Difference], better: int) -> dict[str, str]:
    """What may be said of each of the comparisons of one table.

    "better" or "worse" (`better`: +1 where more is better, -1 where less is) only where Holm's correction over all of
    them leaves p under 0.05; "doubtful" where the interval alone excludes 0; "none" where it contains 0; "alone" where
    one pair has no interval.
    """
    corrected, said = adjusted(found), {}
    for name, d in found.items():
        if d.low is None or d.high is None:
            said[name] = "alone"
        elif d.low <= 0 <= d.high:
            said[name] = "none"
        elif corrected[name] >= ALPHA:
            said[name] = "doubtful"
        else:
            said[name] = "better" if (d.mean > 0) == (better > 0) else "worse"
    return said


def pooled_spread(found: Iterable[Difference]) -> float | None:
    """The noise of a sweep: the standard deviation of paired differences over seeds, pooled over its comparisons by
    their degrees of freedom; None where no comparison has two pairs."""
    known = [(d.n - 1, d.spread) for d in found if d.spread is not None]
    return math.sqrt(sum(k * s**2 for k, s in known) / sum(k for k, _ in known)) if known else None


def smallest_seen(spread: float, n: int, comparisons: int = 1) -> float:
    """The smallest true difference that n seeds find in four sweeps of five, in the unit of `spread`.

    Power 0.8 of the two-sided paired t test (Cohen 1988) at the level that Holm's correction leaves for a single real
    difference among `comparisons`: 0.05 / comparisons. Alone, three seeds see 3.3 spreads, and ten see one.

    Raises:
        ValueError: n < 2, which sees nothing.
    """
    return spread * _effect_seen(n, ALPHA / comparisons)


@functools.cache
def _effect_seen(n: int, level: float) -> float:
    """The mean, in standard deviations, that the two-sided t test of n values finds with POWER."""
    if n < 2:
        raise ValueError(f"a paired t test needs two pairs, not {n}")
    critical = float(special.stdtrit(n - 1, 1 - level / 2)) ** 2

    def lacking(effect: float) -> float:
        # t squared is noncentral F(1, n - 1); the noncentral t of SciPy 1.17 (and so statsmodels' TTestPower) is NaN
        # at such large effects as two and three seeds need.
        return POWER - float(stats.ncf.sf(critical, 1, n - 1, n * effect**2))

    highest = 1.0
    while lacking(highest) > 0:
        highest *= 2
    return float(optimize.brentq(lacking, 0.0, highest, xtol=1e-9))


def _spread(values: np.ndarray) -> float:
    """Standard deviation of values [n], n >= 2; 0 where they differ by rounding only."""
    spread = float(values.std(ddof=1))
    return 0.0 if spread <= 1e-12 * max(1.0, float(np.abs(values).max())) else spread


def _half_width(values: np.ndarray) -> float:
    """Half the t interval of the mean of values [n], n >= 2."""
    quantile = float(special.stdtrit(values.size - 1, (1 + LEVEL) / 2))
    return quantile * _spread(values) / math.sqrt(values.size)


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise UserError(f"There is no value of {name}: train at least one seed first.")
    bad = array[~np.isfinite(array)]
    if bad.size:
        raise UserError(
            f"{name} is {bad[0]} in {bad.size} of {array.size} runs: such a run diverged, so lower its learning rate "
            "or leave it out."
        )
    return array
