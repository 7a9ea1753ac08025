"""Figures that compare the variants of a sweep, each in its look of `plots.styles`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from transformer.analysis.plots import SIZE, Points, Style, legend, panel, plain

# Blue, orange, green and grey: colour-blind readers can distinguish them.
VERDICTS = {"better": "#0072B2", "worse": "#D55E00", "equivalent": "#009E73", "undecided": "#6E6E6E", "": "#333333"}
SOFT = "#555555"


class Row(NamedTuple):
    """One line of a forest plot; NaN bounds draw no interval."""

    name: str
    mean: float
    low: float
    high: float
    dots: Sequence[float] = ()  # of single seeds
    crosses: Sequence[float] = ()  # of seeds that failed
    verdict: str = ""  # of VERDICTS
    note: str = ""  # under the verdict


def forest(rows: Sequence[Row], matters: float, xlabel: str) -> Figure:
    """Differences to a reference with intervals, the band of what does not matter, and verdicts at the right.

    Seeds that failed, and the intervals that hold them, do not set the axis: what lies past it is a mark at its edge.

    Args:
        rows: from top to bottom.
        matters: half the width of the band.
        xlabel: of what, with the unit; it may have lines.
    """
    figure, axes = panel((SIZE[0], 1.1 + 0.46 * len(rows)))
    ends = [x for row in rows if not row.crosses for x in (row.mean, row.low, row.high)]
    ends += [x for row in rows for x in row.dots] + [-1.5 * matters, 1.5 * matters]
    left, right = float(np.nanmin(ends)), float(np.nanmax(ends))
    left, right = left - 0.04 * (right - left), right + 0.04 * (right - left)
    axes.set_xlim(left, right)
    axes.axvspan(-matters, matters, color="#e4e4e4", linewidth=0, zorder=0)
    axes.axvline(0, color="#333333", linewidth=1, zorder=1)
    over = axes.get_yaxis_transform()
    for place, row in enumerate(rows):
        color = VERDICTS[row.verdict]
        axes.plot([row.low, row.high], [place] * 2, color=color, linewidth=1 if row.crosses else 2.6)
        axes.plot(row.mean, place, color=color, marker="D", markersize=6.5, markeredgecolor="white", zorder=3)
        axes.plot(row.dots, [place + 0.24] * len(row.dots), "o", color=color, alpha=0.6, markersize=3.4, mew=0)
        for x in row.crosses:
            at = min(max(x, left), right)
            axes.plot(at, place + 0.24, "x", color="#222222", markersize=6, mew=1.6, clip_on=False, zorder=4)
        for out, at, mark in ((row.low < left, left, "<"), (row.high > right, right, ">")):
            if out:
                axes.plot(at, place, mark, color=color, markersize=7, clip_on=False, zorder=3)
        lines = [text for text in (row.verdict, row.note) if text]
        for i, text in enumerate(lines):
            lifted = place + 0.34 * (i - (len(lines) - 1) / 2)
            first = i == 0 and row.verdict
            axes.text(1.03, lifted, plain(text), transform=over, va="center", color=color if first else SOFT,
                      fontsize=10 if first else 8.5, weight="bold" if first else "normal")  # fmt: skip
    axes.set_yticks(range(len(rows)), [plain(row.name) for row in rows])
    axes.tick_params(axis="y", length=0, pad=10)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    figure.supxlabel(plain(xlabel), fontsize=10)
    return figure


def learning_curves(
    curves: Mapping[str, tuple[Float[np.ndarray, " T"], Float[np.ndarray, "n T"]]],
    look: Mapping[str, Style],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Mean over seeds, and a band from the lowest to the highest seed, against a logarithmic axis.

    Args:
        curves: name -> (what was spent [T], values [n seeds, T]); NaN is left out.
        look: name -> style.
        xlabel, ylabel: with units.
    """
    figure, axes = panel()
    axes.set_xscale("log")
    for name, (spent, values) in curves.items():
        style, values = look[name], np.ma.masked_invalid(values)
        axes.fill_between(spent, values.min(0), values.max(0), color=style.color, alpha=0.13, linewidth=0)
        axes.plot(spent, values.mean(0), color=style.color, linestyle=style.line, linewidth=1.5, label=name,
                  marker=style.marker, markersize=4, markevery=max(len(spent) // 6, 1))  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(x=0.01)
    _decades(axes)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure, axes)
    return figure


def _decades(axes: Axes) -> None:
    """Few ticks on a logarithmic x axis, however much it spans."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def rates(
    tried: Mapping[str, tuple[Points, Float[np.ndarray, "3 n"]]],
    diverged: Mapping[str, Sequence[float]],
    chosen: Mapping[str, float],
    look: Mapping[str, Style],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Loss against a tuned value, on logarithmic axes; what was chosen is ringed, what diverged crossed at the top.
    Losses far above what was chosen leave the axis.

    Args:
        tried: name -> (values [n], mean, lowest and highest loss of the seeds [3, n]); NaN where all diverged.
        diverged: name -> the values at which a seed diverged.
        chosen: name -> its value.
        look: name -> style.
        xlabel, ylabel: with units.
    """
    figure, axes = panel()
    axes.set_xscale("log")
    for place, (name, (values, (mean, low, high))) in enumerate(tried.items()):
        style = look[name]
        errors = np.nan_to_num([mean - low, high - mean])
        axes.errorbar(values, mean, yerr=errors, color=style.color, linestyle=style.line, marker=style.marker,
                      markersize=4.5, linewidth=1.4, elinewidth=0.8, label=name)  # fmt: skip
        at = np.flatnonzero(values == chosen.get(name))
        axes.plot(values[at], mean[at], "o", color=style.color, markersize=12, mfc="none", mew=1.6)
        for value in diverged.get(name, ()):
            axes.plot(value, 1.02 + 0.03 * place, "x", color=style.color, markersize=6, mew=1.6, clip_on=False,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    least = np.array([np.nanmin(mean) for _, (mean, *_) in tried.values() if np.isfinite(mean).any()])
    if least.size:
        if least.min() > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
            axes.set_ylim(least.min() / 1.3, min(axes.get_ylim()[1], 4 * least.max()))
        else:
            span = np.ptp(least) + 0.03 * abs(least.min())
            axes.set_ylim(least.min() - 0.5 * span, min(axes.get_ylim()[1], least.min() + 4 * span))
    if any(diverged.values()):
        axes.text(0, 1.02, "diverged", color=SOFT, fontsize=9, transform=axes.transAxes)
    _decades(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    legend(figure, axes)
    return figure


def front(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    best: Sequence[str],
    look: Mapping[str, Style],
    xlabel: str,
    ylabel: str,
    better: int = 1,
) -> Figure:
    """Quality against cost; a stepped line joins the front, if there is one, whose markers are filled.

    Args:
        points: name -> (cost, its lowest and highest), (quality, its lowest and highest).
        best: the names on the front, by rising cost; none draws no line.
        look: name -> style.
        xlabel, ylabel: with units.
        better: -1 where lower quality is better, as of a loss.
    """
    figure, axes = panel()
    for name, ((x, *across), (y, *up)) in points.items():
        style = look[name]
        axes.errorbar(
            [x], [y], xerr=np.abs(np.subtract(across, x))[:, None], yerr=np.abs(np.subtract(up, y))[:, None],
            color=style.color, marker=style.marker, markersize=7, elinewidth=1, linestyle="none", label=name,
            markerfacecolor=style.color if name in best or not best else "white",
        )  # fmt: skip
    axes.margins(x=0.08)
    if best:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        middle = [(points[name][0][0], points[name][1][0]) for name in best]
        corners = [(middle[0][0], bottom if better > 0 else top), *middle, (right, middle[-1][1])]
        axes.plot(*zip(*corners, strict=True), color=SOFT, linewidth=1, drawstyle="steps-post", zorder=0.5)
        axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    legend(figure, axes)
    return figure


def against_length(
    series: Mapping[str, tuple[Points, Points, Points, Points]],
    edges: Float[np.ndarray, " bins_and_1"],
    look: Mapping[str, Style],
    xlabel: str,
    ylabel: str,
    trained_to: int | None = None,
    percent: bool = False,
) -> Figure:
    """Quality by bins of length; the range of training lengths is shaded.

    Args:
        series: name -> (bin [P], mean [P], low [P], high [P]); bins without a value are left out; NaN bounds draw none.
        edges: bin b holds lengths above edges[b] and up to edges[b + 1], shape [bins + 1].
        look: name -> style.
        xlabel, ylabel: with units.
        trained_to: the longest training length, on the scale of `edges`.
        percent: the values are shares of 1, shown in percent.
    """
    figure, axes = panel()
    scale = 100.0 if percent else 1.0
    bins = len(edges) - 1
    if trained_to is not None:
        end = float(np.interp(trained_to, edges, np.arange(bins + 1))) - 0.5
        axes.axvspan(-0.5, end, color="#f0f0f0", zorder=0, linewidth=0)
        axes.text(0.01 * bins - 0.5, 1.01, "lengths in training", color="#555555", fontsize=9, va="bottom",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    for place, (name, (at, mean, low, high)) in enumerate(series.items()):
        style = look[name]
        x = at + (place - (len(series) - 1) / 2) * 0.6 / max(len(series), 1)  # side by side, not on top of each other
        errors = np.abs(np.stack([mean - low, high - mean])) * scale
        axes.errorbar(
            x, mean * scale, yerr=np.nan_to_num(errors), color=style.color, linestyle=style.line, marker=style.marker,
            markersize=4.5, linewidth=1.3, elinewidth=1, label=name,
            markerfacecolor=style.color if style.line == "-" else "white",
        )  # fmt: skip
    axes.set_xticks(range(bins), [f"{int(a) + 1}–{int(b)}" for a, b in itertools.pairwise(edges)])
    axes.tick_params(axis="x", labelsize=8.5, rotation=30 if bins > 6 else 0)
    axes.set_xlim(-0.5, bins - 0.5)
    axes.grid(visible=False, axis="x")
    if percent:
        axes.set_ylim(-3, 103)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    legend(figure, axes)
    return figure
