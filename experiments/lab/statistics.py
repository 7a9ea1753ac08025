"""What differences are worth: one model of all runs, intervals that hold together, and looks that are counted.

The values of a metric, on a scale on which its noise is even, follow `value = variant + seed + noise`: runs of one seed
share batches and, as far as they can, initial parameters, so what a seed does to all variants cancels. The noise is
pooled over variants and moderated by each variant's own (as Smyth 2004 does for genes). All differences of a table
hold together: the critical value is a quantile of the largest |t| among them (Dunnett 1955), by drawing sweeps of the
same form without any difference, which also allows for missing runs and for earlier looks.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from transformer.errors import UserError

ALPHA = 0.05  # how often a sweep without any difference claims one, over all its comparisons and looks
POWER = 0.8  # how often a difference of the size that is called visible is found
PRIOR = 4.0  # degrees of freedom that the pooled variance is worth beside a variant's own
ODD = 0.01  # spreads are said to differ where equal ones would differ as much so rarely
DRAWS = 40_000  # of sweeps without a difference; the same seed every time
FIRST = 0.9  # of ALPHA goes to the first look at a sweep of planned size; what is left is for sweeps enlarged by hand
ROUNDING = 1e-12  # what is less is 0 but for rounding
FLOOR = 5e-4  # shares of 0 and 1, and rates of 0, are taken as this near to it: half an example of a thousand


class Scale(NamedTuple):
    """A scale on which the noise of a metric is about as large everywhere, and which no interval leaves."""

    forward: Callable[[Any], Any]
    back: Callable[[Any], Any]


SCALES = {
    "plain": Scale(np.asarray, np.asarray),
    "hundred": Scale(
        lambda x: special.logit(np.clip(np.asarray(x) / 100, FLOOR, 1 - FLOOR)), lambda y: 100 * special.expit(y)
    ),  # scores from 0 to 100
    "log": Scale(lambda x: np.log(np.maximum(x, FLOOR)), np.exp),  # losses and rates of errors
    "logit": Scale(lambda x: special.logit(np.clip(x, FLOOR, 1 - FLOOR)), special.expit),  # shares
}


class Interval(NamedTuple):
    """A mean and its bounds; no bounds where there is one value."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """An estimate, its simultaneous interval and p; None where the runs give none.

    `n` is the number of seeds, `odd` says that the noise was taken from these variants alone (Welch).
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    odd: bool = False
    visible: float | None = None  # the true difference that is found with POWER


class Look(NamedTuple):
    """A report that gave verdicts: the seeds that it had, and what it may spend of ALPHA."""

    seeds: tuple[int, ...]
    alpha: float


Values = Mapping[str, Mapping[int, float]]  # variant -> seed -> value
Rows = Mapping[str, Mapping[str, float]]  # comparison -> variant -> coefficient


def mean_interval(values: Sequence[float], scale: str = "plain") -> Interval:
    """Mean of independent runs and its Student t interval of 95 %, taken on a scale and brought back from it.

    Raises:
        UserError: no value, or one that is not finite.
    """
    array = np.asarray(values, np.float64)
    if not array.size or not np.isfinite(array).all():
        raise UserError(f"{list(values)} has no mean: train at least one seed to its end first")
    forward, back = SCALES[scale]
    if (array == array[0]).all():  # also where all are beyond the ends of the scale
        bound = float(array[0]) if array.size > 1 else None
        return Interval(float(array[0]), bound, bound, int(array.size))
    on_scale = forward(array)
    mean = float(on_scale.mean())
    half = float(stats.t.ppf(1 - ALPHA / 2, array.size - 1)) * float(on_scale.std(ddof=1)) / math.sqrt(array.size)
    return Interval(float(back(mean)), float(back(mean - half)), float(back(mean + half)), int(array.size))


def next_look(earlier: Sequence[Look], seeds: Sequence[int], most: int | None) -> Look:
    """The look at these seeds: what it may spend.

    Of a sweep that grows to at most `most` seeds it spends in proportion to the seeds that came (Lan & DeMets 1983, a
    linear function). Without a plan the first look spends FIRST of all, and each later one half of what is left.
    """
    left = max(0.0, ALPHA - sum(look.alpha for look in earlier))
    known = len(earlier[-1].seeds) if earlier else 0
    if most is None:
        share = 0.5 if earlier else FIRST
    else:
        share = min(1.0, (len(seeds) - known) / max(most - known, 1))
    return Look(tuple(seeds), left * share)


def differences(
    values: Values, rows: Rows, looks: Sequence[Look], apart: frozenset[str] = frozenset()
) -> dict[str, Difference]:
    """Each row's contrast of the variants' means, with intervals that hold together at the last look.

    Args:
        values: finite values on their scale.
        rows: which combinations of variants to estimate; a row whose variants have no values is left out.
        looks: all looks so far, the last one being this; values of other seeds than its own do not count.
        apart: variants whose noise is not that of the others, such as one with a run that failed.
    """
    now = set(looks[-1].seeds)
    values = {variant: {s: x for s, x in own.items() if s in now} for variant, own in values.items()}
    rows = {name: row for name, row in rows.items() if all(values.get(variant) for variant in row)}
    level = looks[-1].alpha / max(len(rows), 1)
    pooled = {name: row for name, row in rows.items() if not apart & set(row)}
    found: dict[str, Difference] = {}
    if pooled:
        parted = len(pooled) / len(rows)  # of alpha: the rest is for the rows that are apart
        looks = [look._replace(alpha=look.alpha * parted) for look in looks]
        variants = list(
            dict.fromkeys([v for row in pooled.values() for v in row] + [v for v in values if v not in apart])
        )
        found = _pooled({v: values[v] for v in variants if values[v]}, pooled, looks)
    return {name: found.get(name) or _welch(values, row, level) for name, row in rows.items()}


def _pooled(values: Values, rows: Rows, looks: Sequence[Look]) -> dict[str, Difference]:
    variants = list(values)
    places = {seed: i for i, seed in enumerate(looks[-1].seeds)}
    cells = [(v, seed) for v in variants for seed in values[v]]
    matrix = tuple(tuple(row.get(v, 0.0) for v in variants) for row in rows.values())
    forms = tuple(
        tuple((variants.index(v), places[seed]) for v, seed in cells if seed in set(look.seeds)) for look in looks
    )
    form = _form(forms[-1], matrix)
    if form is None:
        return {}
    y = np.array([[values[v][seed] for v, seed in cells]])
    estimate, error, odd = (part[0] for part in form.fit(y))
    found = {}
    critical, drawn, oddest, seen = _drawn(forms, matrix, tuple(look.alpha for look in looks))
    if len(variants) > 2 and form.freedom and odd > oddest:
        level = looks[-1].alpha / len(rows)
        return {name: _welch(values, row, level) for name, row in rows.items()}
    for place, (name, row) in enumerate(rows.items()):
        n = min(len(values[v]) for v in row)
        mean = 0.0 if abs(estimate[place]) < ROUNDING else float(estimate[place])
        if not form.freedom or not math.isfinite(critical):
            found[name] = Difference(mean, None, None, None, n)
            continue
        half = 0.0 if error[place] < ROUNDING else float(critical * error[place])
        p = float((drawn >= abs(mean) / error[place]).mean()) if half else float(mean == 0)
        p = min(1.0, p * ALPHA / looks[-1].alpha)
        found[name] = Difference(mean, mean - half, mean + half, p, n, visible=float(seen[place] * form.spread(y)))
    return found


class _Form(NamedTuple):
    """The algebra of sweeps whose runs are in the same places."""

    freedom: int
    residual: np.ndarray  # [N, N], projects runs on what variants and seeds do not explain
    contrasts: np.ndarray  # [m, N]
    member: np.ndarray  # [N, V] of 0 and 1: whose run it is
    unmix: np.ndarray  # [V, V], from sums of squares of residuals to variances of variants
    weight: np.ndarray  # [V], of a variant's own variance beside the pooled one

    def fit(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of sweeps [R, N]: estimates [R, m], their standard errors [R, m], and how much the largest variance of a
        variant exceeds the pooled one [R]."""
        squares = (y @ self.residual) ** 2
        pooled = squares.sum(1, keepdims=True) / max(self.freedom, 1)
        own = np.maximum((squares @ self.member) @ self.unmix.T, 0)
        variances = (1 - self.weight) * pooled + self.weight * own
        errors = np.sqrt(variances @ ((self.contrasts**2) @ self.member).T)
        with np.errstate(divide="ignore", invalid="ignore"):
            return y @ self.contrasts.T, errors, np.nan_to_num((own / pooled).max(1))

    def spread(self, y: np.ndarray) -> float:
        """The standard deviation of the noise of one run."""
        return math.sqrt(float(((y @ self.residual) ** 2).sum()) / max(self.freedom, 1))


@functools.lru_cache(256)
def _form(cells: tuple[tuple[int, int], ...], matrix: tuple[tuple[float, ...], ...]) -> _Form | None:
    """None: no run, or a contrast that these runs cannot estimate, as of variants that share no seed."""
    count = len(matrix[0])
    member = np.array([[v == k for k in range(count)] for v, _ in cells], float).reshape(-1, count)
    seeds = sorted({seed for _, seed in cells})
    block = np.array([[seed == k for k in seeds[1:]] for _, seed in cells], float).reshape(len(cells), -1)
    design = np.concatenate([member, block], axis=1)
    wanted = np.concatenate([np.array(matrix), np.zeros((len(matrix), block.shape[1]))], axis=1)
    inverse = np.linalg.pinv(design)
    contrasts = wanted @ inverse
    if not cells or not np.allclose(contrasts @ design, wanted):
        return None
    residual = np.eye(len(cells)) - design @ inverse
    freedom = round(float(np.trace(residual)))
    mixed = member.T @ residual**2 @ member
    own = np.maximum(member.sum(0) - 1, 0)
    return _Form(freedom, residual, contrasts, member, np.linalg.pinv(mixed, rcond=1e-9), own / (own + PRIOR))


@functools.lru_cache(64)
def _drawn(
    forms: tuple[tuple[tuple[int, int], ...], ...], matrix: tuple[tuple[float, ...], ...], alphas: tuple[float, ...]
) -> tuple[float, np.ndarray, float, np.ndarray]:
    """From sweeps without a difference, seen at each of the looks: the critical value of the last look; the largest |t|
    of each sweep there [R], or 0 of those that claimed something before; the excess of a variance that equal ones
    rarely have; and for each contrast the true difference, in standard deviations of a run, that the last look finds
    with POWER [m].

    Each look claims as often as its alpha says among the sweeps that claimed nothing before.
    """
    rng = np.random.default_rng(0)
    cells = list(dict.fromkeys(cell for form in forms for cell in form))
    noise = rng.standard_normal((DRAWS, len(cells)))
    quiet, critical = np.ones(DRAWS, bool), math.inf
    largest, excess, seen = np.zeros(DRAWS), np.zeros(DRAWS), np.full(len(matrix), math.inf)
    for places, alpha in zip(forms, alphas, strict=True):
        form = _form(places, matrix)
        if form is None or not form.freedom:
            continue
        estimate, error, excess = form.fit(noise[:, [cells.index(cell) for cell in places]])
        largest = np.where(quiet, (np.abs(estimate) / error).max(1), 0.0)
        allowed = math.floor(alpha * DRAWS)
        ranked = np.sort(largest[quiet])
        critical = float(ranked[-allowed - 1]) if 0 < allowed < len(ranked) else math.inf
        quiet &= largest <= critical
        seen = np.quantile(critical * error - estimate, POWER, axis=0) if math.isfinite(critical) else seen
    return critical, largest, float(np.quantile(excess, 1 - ODD)), seen


def _welch(values: Values, row: Mapping[str, float], level: float) -> Difference:
    """One contrast with the noise of its own variants, by Satterthwaite's degrees of freedom (Welch 1947)."""
    own = [(coefficient, np.array(list(values[v].values()))) for v, coefficient in row.items() if coefficient]
    mean = float(sum(c * x.mean() for c, x in own))
    n = min(x.size for _, x in own)
    if n < 2 or level <= 0:
        return Difference(mean, None, None, None, n, True)
    parts = [(c**2 * float(x.var(ddof=1)) / x.size, x.size - 1) for c, x in own]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0), n, True)
    freedom = variance**2 / sum(part**2 / k for part, k in parts)
    error = math.sqrt(variance)
    half = float(stats.t.ppf(1 - level / 2, freedom)) * error
    p = min(1.0, float(2 * stats.t.sf(abs(mean) / error, freedom)) * ALPHA / level)
    return Difference(mean, mean - half, mean + half, p, n, True)
