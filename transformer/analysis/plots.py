"""Figures of the reports, from arrays. Every figure has a white background, for light and dark pages, and one panel,
for narrow pages. Colours are Okabe and Ito's, which colour-blind readers can distinguish."""

import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Points = Float[np.ndarray, " _"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
SIZE = (5.4, 3.9)  # inches, one panel
SETTINGS: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.8,
    "svg.hashsalt": "transformer",  # makes files reproducible
}


@dataclasses.dataclass(frozen=True)
class Style:
    color: str
    line: str
    marker: str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each name: the part before the first "-" sets the colour, the rest line and marker."""
    heads, tails = [], []
    for name in names:
        head, _, tail = name.partition("-")
        heads.append(head)
        tails.append(tail)
    colors, kinds = list(dict.fromkeys(heads)), list(dict.fromkeys(tails))
    return {
        name: Style(
            COLORS[colors.index(head) % len(COLORS)],
            LINES[kinds.index(tail) % len(LINES)],
            MARKERS[kinds.index(tail) % len(MARKERS)],
        )
        for name, head, tail in zip(names, heads, tails, strict=True)
    }


def learning_curves(
    curves: Mapping[str, tuple[Float[np.ndarray, " T"], Float[np.ndarray, "n T"]]],
    look: Mapping[str, Style],
    ylabel: str,
) -> Figure:
    """Mean over seeds, and a band from the lowest to the highest seed.

    Args:
        curves: name -> (steps [T], values [n seeds, T]); NaN is left out.
        look: name -> style.
        ylabel: what the values are, with their unit.
    """
    figure, axes = _panel()
    tops = []
    for name, (steps, values) in curves.items():
        style, values = look[name], np.ma.masked_invalid(values)
        axes.fill_between(steps, values.min(0), values.max(0), color=style.color, alpha=0.15, linewidth=0)
        axes.plot(steps, values.mean(0), color=style.color, linestyle=style.line, linewidth=1.6, label=name,
                  marker=style.marker if len(steps) < 12 else None, markersize=4)  # fmt: skip
        tops.append(float(np.ma.filled(values[:, min(1, values.shape[1] - 1)].max(), values.max())))
    if len(tops):  # the first steps are far above the rest
        lowest = min(float(np.nanmin(values)) for _, values in curves.values())
        span = max(tops) - lowest
        axes.set_ylim(lowest - 0.05 * span - 1e-3, max(tops) + 0.05 * span + 1e-3)
    axes.set_xlabel("training step")
    axes.set_ylabel(ylabel)
    axes.margins(x=0.01)
    _legend(figure, axes)
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
    figure, axes = _panel()
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
    _legend(figure, axes)
    return figure


def differences(
    names: Sequence[str],
    means: Float[np.ndarray, " n"],
    lows: Float[np.ndarray, " n"],
    highs: Float[np.ndarray, " n"],
    look: Mapping[str, Style],
    xlabel: str,
) -> Figure:
    """One line per name: its difference to the reference [n], with the interval [lows, highs] (NaN: none)."""
    height = 1.1 + 0.36 * len(names)
    figure, axes = _panel((SIZE[0], height))
    axes.axvline(0, color="#333333", linewidth=1)
    for row, name in enumerate(names):
        style = look[name]
        if np.isfinite(lows[row]):
            axes.plot([lows[row], highs[row]], [row, row], color=style.color, linewidth=2, linestyle=style.line)
        axes.plot(means[row], row, color=style.color, marker=style.marker, markersize=7,
                  markerfacecolor=style.color if style.line == "-" else "white")  # fmt: skip
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(xlabel)
    return figure


def front(
    points: Mapping[str, tuple[float, float, float, float]],
    best: Sequence[str],
    look: Mapping[str, Style],
    xlabel: str,
    ylabel: str,
    better: int = 1,
) -> Figure:
    """Quality against cost; a stepped line connects the Pareto front, whose markers are filled.

    Args:
        points: name -> (cost, quality, low, high); the bounds are those of the quality.
        best: the names on the front, by rising cost.
        look: name -> style.
        xlabel, ylabel: with units.
        better: -1 where lower quality is better, as of a loss.
    """
    figure, axes = _panel()
    for name, (x, y, low, high) in points.items():
        style = look[name]
        axes.errorbar(
            [x], [y], yerr=[[y - low], [high - y]], color=style.color, marker=style.marker, markersize=7, elinewidth=1,
            linestyle="none", label=name, markerfacecolor=style.color if name in best else "white",
        )  # fmt: skip
    axes.margins(x=0.08)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    corners = [
        (points[best[0]][0], bottom if better > 0 else top),
        *(points[name][:2] for name in best),
        (right, points[best[-1]][1]),
    ]
    axes.plot(*zip(*corners, strict=True), color="#555555", linewidth=1, drawstyle="steps-post", zorder=0.5)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


def cost(
    series: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]], xlabel: str, ylabel: str
) -> Figure:
    """Time against length, both on logarithmic axes: name -> (lengths [n], times [n])."""
    figure, axes = _panel()
    for place, (name, (lengths, times)) in enumerate(series.items()):
        axes.plot(
            lengths, times, color=COLORS[place % len(COLORS)], linestyle=LINES[place % len(LINES)],
            marker=MARKERS[place % len(MARKERS)], markersize=5, linewidth=1.6, label=name,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


def matrix(
    values: Float[np.ndarray, "rows columns"],
    xlabel: str,
    ylabel: str,
    scale: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    numbers: bool = False,
) -> Figure:
    """Any matrix as colours: darker for larger, or with negative values, blue and orange about zero (NaN: white).

    Args:
        values: [rows, columns]; the first row is at the top.
        xlabel, ylabel, scale: labels of the axes and of the colour bar.
        rows, columns: names of the rows and columns, if they have some.
        numbers: write the values in the cells, to one decimal.
    """
    height, width = values.shape
    cell = 0.42 if numbers else 0.3
    wide = 1.6 + cell * width if columns or numbers else 0  # named cells need room
    size = (max(SIZE[0], wide), max(2.4, 1.2 + cell * height) if rows or numbers else SIZE[1])
    figure, axes = _panel(size)
    top = float(np.nanmax(np.abs(values))) or 1.0
    if np.nanmin(values) < 0:
        colours = mpl.colors.LinearSegmentedColormap.from_list("about zero", (COLORS[1], "#ffffff", COLORS[0]))
        picture = axes.imshow(values, cmap=colours, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    else:
        picture = axes.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    if rows:
        axes.set_yticks(range(height), map(_plain, rows))
    if columns:
        axes.set_xticks(range(width), map(_plain, columns), rotation=0 if max(map(len, columns)) < 4 else 60)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            dark = value > 0.6 * top and np.nanmin(values) >= 0
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
    axes.grid(visible=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    with mpl.rc_context(SETTINGS):
        figure.colorbar(picture, ax=axes, label=scale)
    return figure


def lines(
    series: Mapping[str, tuple[Points, Points]], xlabel: str, ylabel: str, marked: Mapping[str, float] | None = None
) -> Figure:
    """Name -> (x [n], y [n]), a line each; `marked`: name -> x, a labelled vertical line."""
    figure, axes = _panel()
    for place, (name, (x, y)) in enumerate(series.items()):
        axes.plot(
            x, y, color=COLORS[place % len(COLORS)], linestyle=LINES[place % len(LINES)], linewidth=1.6, label=name
        )
    for name, at in (marked or {}).items():
        axes.axvline(at, color="#555555", linewidth=1)
        over = axes.get_xaxis_transform()
        axes.text(at, 1.01, _plain(name), color="#555555", fontsize=9, ha="center", transform=over)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(x=0.01)
    if len(series) > 1:
        _legend(figure, axes)
    return figure


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a search tree: the last token, and the parent's index (-1 for the beginning)."""

    parent: int
    label: str
    kept: bool  # the search continued or ended here
    best: bool = False  # on the path to the result


def tree(nodes: Sequence[Node]) -> Figure:
    """A search tree from left to right, one column per step: kept nodes, dropped ones (grey), the result (heavy)."""
    depths: list[int] = []
    for node in nodes:
        depths.append(depths[node.parent] + 1 if node.parent >= 0 else 0)
    children = {i: [j for j, node in enumerate(nodes) if node.parent == i] for i in range(-1, len(nodes))}
    heights: dict[int, float] = {}

    def place(i: int, below: float) -> float:
        """Centres a node beside its children, with leaves one below the other; returns the next free height."""
        start = below
        for child in children[i]:
            below = place(child, below)
        heights[i] = (start + below - 1) / 2 if children[i] else below
        return below if children[i] else below + 1

    leaves = 0.0
    for root in children[-1]:
        leaves = place(root, leaves)
    figure, axes = _panel((1.2 + 1.5 * (max(depths) + 1), 0.9 + 0.34 * leaves))
    for i, node in enumerate(nodes):
        colour = COLORS[0] if node.best else "#333333" if node.kept else "#999999"
        if node.parent >= 0:
            x, y = (depths[node.parent], depths[i]), (heights[node.parent], heights[i])
            axes.plot(x, y, color=colour, linewidth=2.4 if node.best else 0.9, zorder=1)
        axes.text(depths[i], heights[i], _plain(node.label), ha="center", va="center", fontsize=9, color=colour,
                  weight="bold" if node.best else "normal", bbox={"facecolor": "white", "edgecolor": colour, "pad": 2.5,
                  "linestyle": "-" if node.kept else ":"}, zorder=2)  # fmt: skip
    axes.set_xlim(-0.5, max(depths) + 0.5)
    axes.set_ylim(leaves - 0.4, -0.6)
    axes.set_axis_off()
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Writes stem.png and stem.svg, reproducibly."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        stem.with_suffix(".svg").write_bytes(to_svg(figure))
        figure.savefig(stem.with_suffix(".png"), dpi=200, metadata={"Software": None})


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, without a date."""
    buffer = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _plain(text: str) -> str:
    """A text as it is: a dollar would begin a formula, and not every character can be drawn."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text).replace("$", r"\$")


def _panel(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        with mpl.rc_context(SETTINGS):
            figure.legend(
                handles, map(_plain, labels), loc="outside lower center", ncols=2 if len(labels) in (2, 4) else 3
            )
