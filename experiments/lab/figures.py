"""The figures of a report: from a sweep's results to arrays, drawn by `transformer.analysis.plots`."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.lab.measures import describe
from experiments.lab.render import Block, Heading, Picture
from experiments.lab.results import Sweep, compare
from experiments.lab.statistics import mean_interval
from experiments.lab.words import capital
from transformer.analysis import plots


def learning(sweep: Sweep, folder: Path) -> list[Block]:
    """The training loss against steps, over the seeds of each variant."""
    curves = {}
    for variant in sweep.variants:
        runs = [np.asarray(run["curve"], float) for run in sweep.of(variant) if run.get("curve")]
        if runs:
            steps = runs[0][:, 0]
            same = [run for run in runs if run.shape == runs[0].shape and (run[:, 0] == steps).all()]
            curves[variant] = (steps, np.stack([run[:, 1] for run in same]))
    if not curves:
        return []
    smoothed = " (smoothed labels)" if sweep.plan["config"]["label_smoothing"] else ""
    figure = plots.learning_curves(curves, plots.styles(sweep.variants), "training loss (nats a token)")
    plots.save(figure, folder / "learning")
    caption = f"Training loss{smoothed}: mean over seeds; the band reaches from the lowest to the highest seed."
    return [Picture("learning", "Training loss against steps, one line for each variant", caption)]


def differences(sweep: Sweep, folder: Path) -> list[Block]:
    """The paired differences of each metric of the answer, with intervals."""
    blocks: list[Block] = []
    for name in sweep.answered:
        metric, found = describe(name), compare(sweep, name)
        if not found:
            continue
        columns = [[getattr(d, part) for d in found.values()] for part in ("mean", "low", "high")]
        mean, low, high = (
            np.asarray([np.nan if v is None else v for v in column]) * metric.scale for column in columns
        )
        label = f"difference in {metric.label}" + (f" ({metric.points.strip()})" if metric.points else "")
        stem = f"difference-{name.replace('/', '-')}"
        plots.save(plots.differences(list(found), mean, low, high, plots.styles(sweep.variants), label), folder / stem)
        caption = f"Difference to {sweep.reference} in {metric.label}, paired over seeds, with 95 % intervals."
        blocks.append(Picture(stem, f"Differences in {metric.label} to the reference", caption))
    return blocks


COSTS = {  # of a run -> axis, scale
    "train_seconds": ("training time of a run (s)", 1.0),
    "flops": ("training FLOPs of a run (GFLOP)", 1e-9),
    "parameters": ("parameters (millions)", 1e-6),
}


def fronts(sweep: Sweep, folder: Path) -> list[Block]:
    """Quality against each cost that differs between variants by a twentieth or more, with the Pareto front."""
    name = sweep.answered[0]
    metric = describe(name)
    blocks: list[Block] = []
    for cost, (axis, scale) in COSTS.items():
        points = {}
        for variant in sweep.variants:
            spent = [run[cost] for run in sweep.of(variant) if run.get(cost) and not run.get("resumed")]
            values = list(sweep.values(variant, name).values())
            if spent and values:
                mean = mean_interval(values, name)
                bounds = (mean.mean, mean.mean) if mean.low is None or mean.high is None else (mean.low, mean.high)
                points[variant] = (scale * median(spent), *(metric.scale * v for v in (mean.mean, *bounds)))
        prices = [point[0] for point in points.values()]
        if len(points) < 2 or max(prices) < 1.05 * min(prices):
            continue
        unit = f" ({metric.unit})" if metric.unit else ""
        best = pareto({variant: (x, metric.better * y) for variant, (x, y, *_) in points.items()})
        stem = f"front-{cost}"
        figure = plots.front(points, best, plots.styles(list(points)), axis, f"{metric.label}{unit}", metric.better)
        plots.save(figure, folder / stem)
        caption = (
            f"{capital(metric.label)} against {axis.split(' (')[0]}, with 95 % intervals. Filled: the front "
            f"({', '.join(best)}); each other variant costs as much as one of these or more, and is on average no "
            "better."
        )
        blocks.append(Picture(stem, f"{metric.label} against {axis}, one point for each variant", caption))
    return [Heading("Quality against cost"), *blocks] if blocks else []


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other beats, by rising cost: name -> (cost, quality), more of which is better."""
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best


def lengths(tables: dict[str, list[dict[str, Any]]], folder: Path) -> list[Block]:
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
                    mean = mean_interval(values, name)
                    drawn.append((place, mean.mean, mean.low, mean.high))
            if drawn:
                series[variant] = tuple(np.asarray(column, float) for column in zip(*drawn, strict=True))
        if not series:
            continue
        percent = metric.unit == "%"
        beyond = first["trained_to"] < edges[-1]
        unit = f" ({metric.unit})" if metric.unit else ""
        figure = plots.against_length(
            series, edges, plots.styles(list(tables)), first["axis"], f"{metric.label}{unit}",
            first["trained_to"] if beyond else None, percent,
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
