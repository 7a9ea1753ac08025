"""What a sweep says: each variant against the reference, in the metric's own unit, with failures as the worst there is.

Only the primary metric gets verdicts, and only of a sweep whose planned runs have all ended; the question's file names
it, and the smallest effect that matters, before anything is run.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.lab.measures import describe
from experiments.lab.results import Sweep
from experiments.lab.statistics import ALPHA, FIRST, SCALES, Difference, Look, Rows, Values, differences


class Judged(NamedTuple):
    """A comparison in the metric's unit: its difference, the differences of single seeds (seed -> difference), and the
    verdict ("" where none is given) with what limits it."""

    difference: Difference
    dots: Mapping[int, float]
    verdict: str = ""
    why: str = ""


def judge(sweep: Sweep, metric: str) -> dict[str, Judged]:
    """Variant -> how it compares with the reference. Verdicts are for the primary metric of a sweep that has ended."""
    rows = {v: {v: 1.0, sweep.reference: -1.0} for v in sweep.variants if v != sweep.reference}
    found = _compared(sweep, metric, rows)
    if metric != sweep.primary or not sweep.ended:
        return found
    return {variant: _verdict(sweep, variant, judged) for variant, judged in found.items()}


def _verdict(sweep: Sweep, variant: str, judged: Judged) -> Judged:
    d, better, matters = judged.difference, describe(sweep.primary).better, sweep.matters
    broken = [v for v in (variant, sweep.reference) if sweep.failures(v)]
    why = "; ".join(f"{len(sweep.failures(v))} of {len(sweep.plan['seeds'])} runs of {v} failed" for v in broken)
    if sweep.reference in broken:
        return judged._replace(verdict="undecided", why=why)
    if d.low is None or d.high is None:
        spent = len(sweep.plan["seeds"]) > 1 and "earlier looks have spent the 5 % of false claims"
        return judged._replace(verdict="undecided", why=why or spent or "one seed shows no spread")
    if nothing_right(sweep, variant) and nothing_right(sweep, sweep.reference):
        return judged._replace(verdict="undecided", why="neither gets anything right")
    if -matters < d.low and d.high < matters:
        verdict = "equivalent"
    elif d.low > 0 or d.high < 0:
        verdict = "better" if (d.mean > 0) == (better > 0) else "worse"
    else:
        verdict = "undecided"
    if (verdict == "equivalent" and broken) or (verdict == "better" and variant in broken):
        verdict = "undecided"
    return judged._replace(verdict=verdict, why=why)


def effects(sweep: Sweep, metric: str) -> tuple[dict[str, Judged], str]:
    """The parts of the variants' names on their own, of a full grid of names such as "learned-window", and what allows
    them to be read: main effects where no interaction was seen, else the effects within each other part."""
    parts = {variant: tuple(variant.split("-")) for variant in sweep.variants}
    width = {len(names) for names in parts.values()}
    if len(width) != 1 or width == {1}:
        return {}, ""
    levels = [list(dict.fromkeys(column)) for column in zip(*parts.values(), strict=True)]
    if len(list(itertools.product(*levels))) != len(parts) or sum(len(names) > 1 for names in levels) < 2:
        return {}, ""
    base, simple, main = parts[sweep.reference], dict[str, dict[str, float]](), dict[str, dict[str, float]]()
    interaction: dict[str, dict[str, float]] = {}
    for place, names in enumerate(levels):
        for name in (name for name in names if name != base[place]):
            own = [v for v in parts if parts[v][place] == name]
            pairs = {v: "-".join([*parts[v][:place], base[place], *parts[v][place + 1 :]]) for v in own}
            title = f"{name} instead of {base[place]}"
            title += f" (part {place + 1})" if title in main else ""
            main[title] = {v: 1 / len(own) for v in own} | {other: -1 / len(own) for other in pairs.values()}
            home = "-".join([*base[:place], name, *base[place + 1 :]])
            for v in own:
                rest = "-".join([*parts[v][:place], *parts[v][place + 1 :]])
                simple[f"{title}, with {rest}"] = {v: 1.0, pairs[v]: -1.0}
                if v != home:
                    interaction[v] = {v: 1.0, pairs[v]: -1.0, home: -1.0, sweep.reference: 1.0}
    crossed = _compared(sweep, metric, interaction)
    if not crossed or any(judged.difference.p is None for judged in crossed.values()):
        return {}, ""
    if any(judged.difference.p < ALPHA for judged in crossed.values() if judged.difference.p is not None):
        return _compared(sweep, metric, simple), "The parts interact, so each effect is given within each other part."
    return _compared(
        sweep, metric, main
    ), "No interaction of the parts was seen, so effects are averaged over the rest."


def _compared(sweep: Sweep, metric: str, rows: Rows) -> dict[str, Judged]:
    """Differences on the scale of the metric's noise, brought back at the level of the reference."""
    scale, values = SCALES[describe(metric).noise], on_scale(sweep, metric)
    if not values.get(sweep.reference):
        return {}
    level = float(np.mean(list(values[sweep.reference].values())))
    apart = frozenset(v for v in sweep.variants if sweep.failures(v))
    looks = sweep.looks or [Look(tuple(sweep.plan["seeds"]), ALPHA * FIRST)]

    def natural(x: float, at: float = level) -> float:
        return float(scale.back(at + x) - scale.back(at))

    # The level of the reference is not known either, and near the end of a scale it matters: the outer bounds count.
    ends = [level + sign * _uncertain(values, sweep.reference, apart) for sign in (-1, 0, 1)]
    found = {}
    for name, d in differences(values, rows, looks, apart).items():
        shared = set.intersection(*(set(values[v]) for v in rows[name]))
        dots = {seed: sum(c * values[v][seed] for v, c in rows[name].items()) for seed in sorted(shared)}
        moved = d._replace(mean=natural(d.mean))
        if d.low is not None and d.high is not None:
            moved = moved._replace(
                low=min(natural(d.low, at) for at in ends), high=max(natural(d.high, at) for at in ends)
            )
        if d.visible is not None:
            moved = moved._replace(visible=max(abs(natural(x)) for x in (-d.visible, d.visible)))
        found[name] = Judged(moved, {seed: natural(x) for seed, x in dots.items()})
    return found


def _uncertain(values: Values, reference: str, apart: frozenset[str]) -> float:
    """Half the 95 % interval of the reference's mean, with the spread of runs pooled over the variants."""
    own = [np.array(list(v.values())) for name, v in values.items() if v and (name not in apart or name == reference)]
    freedom = sum(x.size - 1 for x in own)
    if not freedom:
        return 0.0
    spread = np.sqrt(sum(((x - x.mean()) ** 2).sum() for x in own) / freedom)
    return float(stats.t.ppf(1 - ALPHA / 2, freedom) * spread / np.sqrt(len(values[reference])))


def nothing_right(sweep: Sweep, variant: str) -> bool:
    """Whether all runs of a variant have the worst value that a share can have."""
    described, values = describe(sweep.primary), sweep.values(variant, sweep.primary).values()
    return described.noise in ("logit", "hundred") and described.better > 0 and not any(values)


def on_scale(sweep: Sweep, metric: str) -> Values:
    """Variant -> seed -> value on the scale of its noise; the worst there is for runs that failed."""
    described = describe(metric)
    scale, found = SCALES[described.noise], {v: dict(sweep.values(v, metric)) for v in sweep.variants}
    known = [value for own in found.values() for value in own.values()]
    if not known:
        return found
    lost = worst_case(sweep, metric, known)
    for variant in sweep.variants:
        if found[variant] or not sweep.of(variant):  # a variant whose finished runs give no value has none
            found[variant] |= dict.fromkeys(sweep.failures(variant), lost)
    return {v: {seed: float(scale.forward(value)) for seed, value in sorted(own.items())} for v, own in found.items()}


def worst_case(sweep: Sweep, metric: str, known: list[float]) -> float:
    """What a run that failed counts as: 0 of a share, the loss before training, or the worst of the others."""
    described = describe(metric)
    if described.noise in ("logit", "hundred"):
        return 0.0 if described.better > 0 else float(SCALES[described.noise].back(np.inf))
    first = [run["curve"][0][1] for run in sweep.results.values() if run.get("curve")]
    ends = known + (first if metric.rpartition("/")[2] == "loss" else [])
    return min(ends) if described.better > 0 else max(ends)
