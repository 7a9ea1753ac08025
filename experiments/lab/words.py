"""Figures as words: the sentences of a report follow from its numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.lab.measures import Metric, describe
from experiments.lab.results import Sweep, compare, factors
from experiments.lab.statistics import (
    ALPHA,
    Difference,
    adjusted,
    mean_interval,
    pooled_spread,
    smallest_seen,
    verdicts,
)

MINUS = "−"
PERCENT = Metric("accuracy", "%", 100.0, 1)
MORE_SEEDS = (5, 10, 20)  # what the next larger number of them would see is told beside what was seen


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
    found = mean_interval(values, metric.label)
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


def headline(sweep: Sweep) -> str:
    """The answer in one sentence: the first metric, with the largest differences and their intervals."""
    name = sweep.answered[0]
    metric, found = describe(name), compare(sweep, name)
    values = list(sweep.values(sweep.reference, name).values())
    if not values or not found:
        return f"{capital(metric.label)}: there is nothing to compare with {sweep.reference} yet."
    mean = mean_interval(values, name)
    unit = f" {metric.unit}" if metric.unit else ""
    reference = f"{sweep.reference} ({number(mean.mean, metric)}{unit}{interval(mean.low, mean.high, metric)})"
    said = verdicts(found, metric.better)
    if set(said.values()) == {"alone"}:
        return f"{capital(metric.label)}: one pair of runs cannot tell a variant from {reference}."

    def clause(kind: str, words: str, none: str = "") -> str:
        names = sorted((v for v in said if said[v] == kind), key=lambda v: -abs(found[v].mean))
        if not names:
            return none
        most = f"{names[0]} ({difference(found[names[0]], metric)})"
        if len(names) == 1:
            return f"{most} is {words}"
        return f"{len(names)} variants are {words}, most of all {most}"

    clauses = [
        clause("better", "better", "none is better"),
        clause("worse", "worse", "none is worse"),
        clause("doubtful", "in doubt"),
        clause("none", "not told apart from it"),
    ]
    return f"{capital(metric.label)}, against {reference}: {'; '.join(text for text in clauses if text)}."


LEADS = {
    "better": "Better than it: ",
    "worse": "Worse: ",
    "doubtful": f"In doubt, as the interval leaves out 0 but Holm's correction does not leave p under {ALPHA:.2g}: ",
    "none": "No difference was seen, as the interval contains 0: ",
    "alone": "One pair of runs cannot tell a difference from chance: ",
}


def answer(sweep: Sweep) -> list[str]:
    """The answer for the first metric of each split, in words made from the numbers."""
    texts = []
    for name in sweep.answered:
        metric = describe(name)
        values = list(sweep.values(sweep.reference, name).values())
        if not values:
            texts.append(f"{metric.label}: the reference ({sweep.reference}) has no value yet, so nothing is compared.")
            continue
        mean = mean_interval(values, name)
        unit = f" {metric.unit}" if metric.unit else ""
        spread = (
            f" (95 % interval{interval(mean.low, mean.high, metric)}, {mean.n} seeds)"
            if mean.n > 1
            else " (one seed, which gives no interval)"
        )
        text = f"{metric.label}: the reference, {sweep.reference}, reached {number(mean.mean, metric)}{unit}{spread}."
        found = compare(sweep, name)
        corrected = adjusted(found)
        groups: dict[str, list[str]] = {}
        for variant, kind in verdicts(found, metric.better).items():
            doubt = f"; p = {p_value(corrected[variant])} after Holm's correction" if kind == "doubtful" else ""
            groups.setdefault(kind, []).append(f"{variant} ({difference(found[variant], metric)}{doubt})")
        for kind, lead in LEADS.items():
            if kind in groups:
                text += f" {lead}{', '.join(groups[kind])}."
        without = [v for v in sweep.variants if v not in found and v != sweep.reference and sweep.of(v)]
        if without:
            text += f" No value: {', '.join(without)}."
        parts = [f"{part} {difference(d, metric)}" for part, d in factors(sweep, name).items()]
        if parts:
            text += f" Averaged over all else: {', '.join(parts)}."
        texts.append(capital(text))
    if sweep.cost:
        texts.append(f"Cost of attention alone: {' '.join(cost_words(sweep.cost['rows']))}")
    return texts


def visible(sweep: Sweep, name: str) -> str | None:
    """What the seeds of a sweep can and cannot see of a metric; None where no comparison has two pairs."""
    metric = describe(name)
    found = [d for d in compare(sweep, name).values() if d.n > 1]
    spread = pooled_spread(found)
    if not spread:
        return None
    seeds = Counter(d.n for d in found).most_common(1)[0][0]

    def size(n: int, comparisons: int) -> str:
        return f"{number(smallest_seen(spread, n, comparisons), metric)}{metric.points}"

    more = next((n for n in MORE_SEEDS if n > seeds), 2 * seeds)
    among = f" as one of {len(found)} comparisons (Holm)" if len(found) > 1 else ""
    text = (
        f"With {seeds} seeds a difference in {metric.label} under {size(seeds, len(found))} may well be missed: "
        f"that is the smallest that is found in four sweeps of five{among}, where paired differences vary by "
        f"{number(spread, metric)}{metric.points} from seed to seed."
    )
    if among:
        text += f" As the only comparison it would be {size(seeds, 1)}."
    return f"{text} With {more} seeds it would be {size(more, len(found))}."


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
        if from_here is None:
            texts.append(f"{kind}: no faster than “{kinds[0]}” ({ratio:.1f} times as fast at {last}).")
        else:
            texts.append(
                f"{kind}: faster than “{kinds[0]}” from length {from_here} on, {ratio:.1f} times as fast at {last}."
            )
    return texts


def limits(sweep: Sweep) -> list[str]:
    """What the data cannot say."""
    config = sweep.plan["config"]
    items = [text for name in sweep.answered if (text := visible(sweep, name))]
    if len(sweep.plan["seeds"]) < 2:
        items.append("Any difference: one seed shows no spread.")
    return [
        *items,
        "Intervals are Student's t over seeds: they assume roughly normal spread and hold for new seeds on these test "
        "sentences, not for new test sentences. Near 0 or 100 % they may reach past the possible.",
        f"Other data: all runs are on `{config['data']['name']}`.",
        f"Other sizes and longer training: {config['model']['num_layers']} layers, width {config['model']['d_model']}, "
        f"{config['steps']} steps, and settings that were tuned for no variant in particular.",
        "Times were taken while other runs had the other cores; they compare variants within this table only.",
    ]
