"""Figures as words: the sentences of a report follow from its numbers, and claim what the verdicts allow."""

from collections.abc import Sequence
from typing import Any

from experiments.lab.measures import Metric, describe
from experiments.lab.results import Sweep
from experiments.lab.statistics import ALPHA, POWER, Difference, mean_interval
from experiments.lab.verdicts import Judged, judge

MINUS = "−"
PERCENT = Metric("accuracy", "%", 100.0, 1)
NAMED = 4  # variants that a sentence lists; of more it tells the number


def number(value: float, metric: Metric, signed: bool = False) -> str:
    """A value in the metric's unit; a minus is a minus sign."""
    shown = round(value * metric.scale, metric.digits) or 0.0  # no minus before a zero
    return f"{shown:{'+' if signed and shown else ''}.{metric.digits}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, metric: Metric, signed: bool = False) -> str:
    """[low, high], or nothing where one seed gives none."""
    if low is None or high is None:
        return ""
    return f" [{number(low, metric, signed)}, {number(high, metric, signed)}]"


def mean(values: Sequence[float], metric: Metric) -> str:
    """The mean of runs with its interval, or a dash where there is none."""
    if not values:
        return "–"
    found = mean_interval(values, metric.noise)
    return f"{number(found.mean, metric)}{interval(found.low, found.high, metric)}"


def difference(d: Difference, metric: Metric) -> str:
    """The mean with its unit and interval."""
    return f"{number(d.mean, metric, True)}{metric.points}{interval(d.low, d.high, metric, True)}"


def p_value(value: float) -> str:
    """To three digits."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(number_of: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number_of} {noun}" + ("" if number_of == 1 else "s")


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def of(unit: str) -> str:
    """(unit), or nothing where there is none."""
    return f" ({unit.strip()})" if unit else ""


def listed(names: Sequence[str]) -> str:
    """a, b and c; of many the first ones and how many others."""
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(sweep: Sweep) -> str:
    """The answer in one sentence: the verdicts of the primary metric with the largest differences, and what failed."""
    metric, found = describe(sweep.primary), judge(sweep, sweep.primary)
    clauses, subject = [], capital(metric.label)
    lost = [v for v in sweep.variants if v != sweep.reference and v not in found]
    if not sweep.ended:
        done = len(sweep.results) + len(sweep.errors) - len(sweep.damaged)
        clauses.append(f"no verdict before all {len(sweep.planned)} runs have ended ({done} have)")
    elif not found:
        clauses.append(f"there is nothing to compare with {sweep.reference}")
    else:
        values = list(sweep.values(sweep.reference, sweep.primary).values())
        subject += f", against {sweep.reference}"
        if values:
            unit, reached = f" {metric.unit}" if metric.unit else "", mean_interval(values, metric.noise)
            spread = interval(reached.low, reached.high, metric)
            subject += f" ({number(reached.mean, metric)}{unit}{spread})"
        kinds = ("better", "worse", "equivalent", "undecided")
        clauses += [text for kind in kinds if (text := _clause(sweep, kind, found))]
        clauses += [f"{listed(lost)} {'has' if len(lost) == 1 else 'have'} no value"] if lost else []
    clauses += [f"{text} diverged or failed" for v in sweep.variants if (text := failed(sweep, v, f" runs of {v}"))]
    if skipping := {v: n for v in sweep.variants if (n := sum(run.get("skipped") or 0 for run in sweep.of(v)))}:
        clauses.append("updates were skipped in " + listed([f"{v} ({n:g})" for v, n in skipping.items()]))
    return f"{subject}: {'; '.join(clauses)}."


def _clause(sweep: Sweep, kind: str, found: dict[str, Judged]) -> str:
    """The variants with this verdict, and the largest of their differences."""
    metric = describe(sweep.primary)
    own = {v: judged for v, judged in found.items() if judged.verdict == kind}
    if not own:
        return ""
    names = sorted(own, key=lambda v: (bool(sweep.failures(v)), -abs(own[v].difference.mean)))
    first, text = own[names[0]], f"{listed(names)} {'is' if len(names) == 1 else 'are'} {kind}"
    if kind == "undecided" and (sweep.failures(names[0]) or sweep.failures(sweep.reference)):
        return text  # the failures are told, and such a difference says nothing else
    most = difference(first.difference, metric)
    if kind in ("better", "worse"):
        return f"{text}{f', {names[0]} the most' if len(names) > 1 else ''} ({most})"
    text += f" ({f'{names[0]} ' if len(names) > 1 else ''}{most}"
    seen = [abs(judged.difference.visible) for judged in own.values() if judged.difference.visible]
    if kind == "equivalent":
        text += f"; less than {number(sweep.matters, metric)}{metric.points} does not matter"
    elif seen:
        text += f"; {number(max(seen), metric)}{metric.points} would be found in {100 * POWER:.0f} % of sweeps"
    elif first.why:
        text += f"; {first.why}"
    return text + ")"


def failed(sweep: Sweep, variant: str, of_what: str = "") -> str:
    """1 of 3, with what they are of; nothing where none failed."""
    count_of = len(sweep.failures(variant))
    return f"{count_of} of {len(sweep.plan['seeds'])}{of_what}" if count_of else ""


def looked(sweep: Sweep) -> str:
    """Which look at the sweep this is, and what it spent of ALPHA; nothing where no verdict is given."""
    if not sweep.looks or not sweep.ended:
        return ""
    last = sweep.looks[-1]
    said = f"Look {len(sweep.looks)} at this sweep, with {count(len(last.seeds), 'seed')}: it spent {last.alpha:.3g}"
    return f"{said} of the {ALPHA:g} that all looks share."


def fallback(sweep: Sweep, found: dict[str, Judged]) -> str:
    """Whose noise was not pooled, and why; nothing where all was."""
    texts, reference = [], sweep.failures(sweep.reference)
    if odd := [v for v, j in found.items() if j.difference.odd and not sweep.failures(v) and not reference]:
        texts.append(f"Spreads differ, so the noise of {listed(odd)} and of the reference alone counts (Welch).")
    if any(map(sweep.failures, sweep.variants)):
        texts.append("A failed run counts as the worst value there is in differences, and is left out of means.")
    return " ".join(texts)


def cost_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    """From which length on each kind is faster (by a tenth) than the first one, one sentence each."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    times = {(row["kind"], row["length"]): row["milliseconds"] for row in rows}
    texts = []
    for kind in kinds[1:]:
        pairs = [
            (length, times[kinds[0], length] / times[kind, length]) for length in lengths if (kind, length) in times
        ]
        from_here = next((n for i, (n, _) in enumerate(pairs) if all(ratio > 1.1 for _, ratio in pairs[i:])), None)
        last, ratio = pairs[-1]
        ratio_there = f"{ratio:.1f} times as fast at {last}"
        slower, faster = f"no faster than “{kinds[0]}” ({ratio_there}).", f"faster than “{kinds[0]}” from length"
        texts.append(f"{kind}: {slower if from_here is None else f'{faster} {from_here} on, {ratio_there}.'}")
    return texts
