"""Intervals and tests over seeds: few, textbook, and each says what it assumes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from transformer.config import UserError

LEVEL = 0.95  # of every interval in a report


class Interval(NamedTuple):
    """A mean and its two-sided interval, in the unit of the values; no bounds where there is one value."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """Mean of a - b over pairs, its interval and the two-sided p; None where n = 1 gives none."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


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
    if delta.size == 1:
        return Difference(mean, None, None, None, 1)
    half = _half_width(delta)
    if half == 0.0:
        p = 1.0 if mean == 0.0 else 0.0
    else:
        p = float(stats.ttest_rel(a, b).pvalue)
    return Difference(mean, mean - half, mean + half, p, int(delta.size))


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


def _half_width(values: np.ndarray) -> float:
    """Half the t interval of the mean of values [n], n >= 2."""
    spread = float(values.std(ddof=1))
    if math.isclose(spread, 0.0, abs_tol=1e-12 * max(1.0, float(np.abs(values).max()))):
        return 0.0  # rounding noise of equal values is not a spread
    return float(stats.t.ppf((1 + LEVEL) / 2, values.size - 1)) * spread / math.sqrt(values.size)


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
