"""The figures of a report: from a sweep's results to arrays, drawn by `transformer.analysis`."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.lab.measures import describe
from experiments.lab.render import Block, Choice, Picture
from experiments.lab.results import Sweep
from experiments.lab.statistics import mean_interval
from experiments.lab.verdicts import judge
from experiments.lab.words import capital, failed, of
from transformer.analysis import comparisons, plots

BEGUN = 0.05  # of the training: learning curves are drawn from there on, where they tell variants apart


def forest(sweep: Sweep, folder: Path) -> list[Block]:
    """The differences of the primary metric to the reference, with what the sweep says of them."""
    metric, rows = describe(sweep.primary), []
    for variant, (d, dots, verdict, _) in judge(sweep, sweep.primary).items():
        broken = {*sweep.failures(variant), *sweep.failures(sweep.reference)}
        mean, low, high = (np.nan if x is None else x * metric.scale for x in (d.mean, d.low, d.high))
        whole, lost = ([x * metric.scale for s, x in dots.items() if (s in broken) == gone] for gone in (False, True))
        note = failed(sweep, variant, " failed")
        rows.append(comparisons.Row(variant, mean, low, high, whole, lost, verdict, note))
    if not rows:
        return []
    towards = {1: "worse ← → better", -1: "better ← → worse", 0: ""}[metric.better]
    label = f"{metric.label}{of(metric.points)}, difference to {sweep.reference}\n{towards}"
    plots.save(comparisons.forest(rows, sweep.matters * metric.scale, label), folder / "differences")
    caption = "Lines: intervals that hold together in 95 % of sweeps. Dots: seeds; grey band: too small to matter"
    caption += "; ×: a run that failed." if any(map(sweep.failures, sweep.variants)) else "."
    return [Picture("differences", f"Differences in {metric.label} to {sweep.reference}", caption)]


def rates(sweep: Sweep, folder: Path) -> list[Block]:
    """Validation loss against the value that was tuned, for one that is a single number."""
    tuning = sweep.plan["tuning"]
    tried: dict[str, Any] = {}
    for variant, rows in tuning["tried"].items():
        known = [[x for x in row["losses"] if x is not None] or [np.nan] for row in rows]
        losses = np.array([[np.mean(own), min(own), max(own)] for own in known]).T
        tried[variant] = np.array([row["value"] for row in rows], float), losses
    diverged = {v: [row["value"] for row in rows if row["diverged"]] for v, rows in tuning["tried"].items()}
    look = plots.styles(sweep.variants)
    figure = comparisons.rates(tried, diverged, tuning["chosen"], look, tuning["key"], "validation loss")
    plots.save(figure, folder / "tuning")
    caption = "Mean and range of the tuning seeds. Ringed: chosen; ×: a seed diverged."
    return [Picture("tuning", f"Validation loss against {tuning['key']}, one line for each variant", caption)]


def learning(sweep: Sweep, folder: Path) -> list[Block]:
    """The loss in training and validation against steps, FLOPs and tokens."""
    axes = {  # label -> unit, of one step of a run
        "steps": ("training step", lambda run: 1.0),
        "FLOPs": ("training FLOPs", lambda run: (run.get("flops") or np.nan) / run["config"]["steps"]),
        "tokens": ("tokens, padding included", lambda run: run["config"]["data"]["batch_tokens"]),
    }
    smoothed = " (smoothed labels)" if sweep.plan["config"]["label_smoothing"] else ""
    options: dict[str, list[Block]] = {}
    for label, (xlabel, price) in axes.items():
        for key, what in {"curve": f"training loss{smoothed}", "validation_curve": "validation loss"}.items():
            curves = {}
            for variant in sweep.variants:
                runs = [(np.array(run[key], float), price(run)) for run in sweep.of(variant) if run.get(key)]
                if runs and np.isfinite(runs[0][1]):
                    steps = runs[0][0][:, 0]
                    same = [run for run, _ in runs if run.shape == runs[0][0].shape and (run[:, 0] == steps).all()]
                    late = (steps >= BEGUN * steps[-1]) & (steps > 0)
                    curves[variant] = steps[late] * runs[0][1], np.stack([run[late, 1] for run in same])
            if curves:
                stem = "-".join(
                    ["learning", *([key[:10]] if key != "curve" else []), *([label] if label != "steps" else [])]
                )
                figure = comparisons.learning_curves(curves, plots.styles(sweep.variants), xlabel, what)
                plots.save(figure, folder / stem)
                caption = f"{capital(what)}, from {100 * BEGUN:.0f} % of the training on. Bands: all seeds."
                options.setdefault(label, []).append(Picture(stem, f"{what} against {xlabel}", caption))
    return [Choice("Against", options)] if options else []


COSTS = {  # of a run -> axis
    "flops": "training FLOPs of a run",
    "parameters": "parameters",
    "train_seconds": "training time of a run (s)",
}


def fronts(sweep: Sweep, folder: Path) -> list[Block]:
    """Quality against each cost that differs between variants by a twentieth or more."""
    metric, blocks = describe(sweep.primary), list[Block]()
    for cost, axis in COSTS.items():
        points = {}
        for variant in sweep.variants:
            spent = [float(run[cost]) for run in sweep.of(variant) if run.get(cost) and not run.get("resumed")]
            values = list(sweep.values(variant, sweep.primary).values())
            if spent and values:
                mean, *bounds, _ = mean_interval(values, metric.noise)
                quality = [metric.scale * (mean if x is None else x) for x in (mean, *bounds)]
                points[variant] = (median(spent), min(spent), max(spent)), quality
        prices = [point[0][0] for point in points.values()]
        if len(points) < 2 or max(prices) < 1.05 * min(prices):
            continue
        best = front(sweep, {variant: across for variant, ((_, *across), _) in points.items()})
        stem, quality_axis = f"front-{cost}", metric.label + of(metric.unit)
        look = plots.styles(sweep.variants)
        plots.save(comparisons.front(points, best, look, axis, quality_axis, metric.better), folder / stem)
        caption = f"{capital(metric.label)} against {axis.split(' (')[0]}. " + (
            f"Line: the front ({', '.join(best)}), where all that costs no more is shown to be worse."
            if best
            else "No front is drawn: none is shown to be better than all that costs no more."
        )
        blocks.append(Picture(stem, f"{metric.label} against {axis}, one point for each variant", caption))
    return blocks


def front(sweep: Sweep, costs: dict[str, list[float]]) -> list[str]:
    """The variants, by rising cost, that are shown to be better than each that may cost as little; at least two.

    Args:
        sweep: whose verdicts count; they are against the reference, so one that is better and one that is worse are
            told apart too.
        costs: variant -> [lowest, highest].
    """
    rank = {v: ("worse", "", "better").index(j.verdict) for v, j in judge(sweep, sweep.primary).items()
            if j.verdict in ("worse", "better")} | {sweep.reference: 1}  # fmt: skip
    best = [
        v
        for v in sorted(costs, key=lambda v: costs[v])
        if v in rank and all(rank.get(c, 3) < rank[v] for c in costs if c != v and costs[c][0] <= costs[v][1])
    ]
    return best if len(best) > 1 else []


def lengths(tables: dict[str, list[dict[str, Any]]], variants: list[str], folder: Path) -> list[Block]:
    """Quality by length, for each metric that the runs name: variant -> `by_length` of each of its runs."""
    first = next(iter(tables.values()))[0]
    edges = np.asarray([row["low"] for row in first["rows"]] + [first["rows"][-1]["high"]], float)
    blocks: list[Block] = []
    for name in first["metrics"]:
        metric, series = describe(name), dict[str, Any]()
        for variant, runs in tables.items():
            drawn = []
            for place in range(len(first["rows"])):
                values = [run["rows"][place][name] for run in runs if run["rows"][place][name] is not None]
                if values:
                    drawn.append((place, *mean_interval(values, metric.noise)[:3]))
            if drawn:
                series[variant] = tuple(np.asarray(column, float) for column in zip(*drawn, strict=True))
        if not series:
            continue
        beyond = first["trained_to"] < edges[-1]
        figure = comparisons.against_length(
            series, edges, plots.styles(variants), first["axis"],
            metric.label + of(metric.unit),
            first["trained_to"] if beyond else None, metric.unit == "%",
        )  # fmt: skip
        stem = f"length-{name}"
        plots.save(figure, folder / stem)
        caption = f"{capital(metric.label)} by length: mean over seeds with 95 % intervals."
        if beyond:
            caption += f" Shaded: lengths that occur in training (up to {first['trained_to']})."
        blocks.append(Picture(stem, f"{metric.label} against length, one line for each variant", caption))
    return blocks


def cost(rows: list[dict[str, Any]], folder: Path) -> list[Block]:
    """The time of each kind of attention against length."""
    _against_length(rows, "milliseconds", 1, "forward + backward (ms)", folder / "cost")
    caption = "Time of one forward and backward pass of attention alone; both axes are logarithmic."
    return [Picture("cost", "Time of each kind of attention against length", caption)]


def memory(rows: list[dict[str, Any]], folder: Path) -> list[Block]:
    """The memory of each kind of attention against length."""
    _against_length(rows, "bytes", 2**-20, "forward + backward (MiB)", folder / "memory")
    caption = "Memory of one forward and backward pass, besides arguments and results; both axes are logarithmic."
    return [Picture("memory", "Memory of each kind of attention against length", caption)]


def _against_length(rows: list[dict[str, Any]], column: str, scale: float, label: str, stem: Path) -> None:
    series: dict[str, Any] = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [(row["length"], row[column] * scale) for row in rows if row["kind"] == kind]
        series[kind] = tuple(np.asarray(values, float) for values in zip(*own, strict=True))
    plots.save(plots.cost(series, "length (tokens)", label), stem)
