"""Figures of the reports, from arrays. Every figure has a white background, for light and dark pages, and one panel,
for narrow pages. Colours are Okabe and Ito's, which colour-blind readers can distinguish."""

import dataclasses
import io
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

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D46")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (9, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
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
    line: Any  # of LINES
    marker: str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A look for each name, of up to 64 no two alike: of a grid of names, the part before the first "-" sets the
    colour, the rest line and marker; other names get their own colour, line and marker."""
    parts = {name: (name.partition("-")[0], name.partition("-")[2]) for name in names}
    heads, tails = (list(dict.fromkeys(column)) for column in zip(*parts.values(), strict=True))
    grid = 1 < len(heads) <= len(COLORS) and 1 < len(tails) <= len(LINES)
    found = {}
    for place, (name, (head, tail)) in enumerate(parts.items()):
        color, kind = (heads.index(head), tails.index(tail)) if grid else (place, place + place // len(COLORS))
        found[name] = Style(COLORS[color % len(COLORS)], LINES[kind % len(LINES)], MARKERS[kind % len(MARKERS)])
    return found


def cost(
    series: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]], xlabel: str, ylabel: str
) -> Figure:
    """Time against length, both on logarithmic axes: name -> (lengths [n], times [n])."""
    figure, axes = panel()
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
    legend(figure, axes)
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
    figure, axes = panel(size)
    top = float(np.nanmax(np.abs(values))) or 1.0
    if np.nanmin(values) < 0:
        colours = mpl.colors.LinearSegmentedColormap.from_list("about zero", (COLORS[1], "#ffffff", COLORS[0]))
        picture = axes.imshow(values, cmap=colours, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    else:
        picture = axes.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    if rows:
        axes.set_yticks(range(height), map(plain, rows))
    if columns:
        axes.set_xticks(range(width), map(plain, columns), rotation=0 if max(map(len, columns)) < 4 else 60)
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
    figure, axes = panel()
    for place, (name, (x, y)) in enumerate(series.items()):
        axes.plot(
            x, y, color=COLORS[place % len(COLORS)], linestyle=LINES[place % len(LINES)], linewidth=1.6, label=name
        )
    for name, at in (marked or {}).items():
        axes.axvline(at, color="#555555", linewidth=1)
        over = axes.get_xaxis_transform()
        axes.text(at, 1.01, plain(name), color="#555555", fontsize=9, ha="center", transform=over)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(x=0.01)
    if len(series) > 1:
        legend(figure, axes)
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
    figure, axes = panel((1.2 + 1.5 * (max(depths) + 1), 0.9 + 0.34 * leaves))
    for i, node in enumerate(nodes):
        colour = COLORS[0] if node.best else "#333333" if node.kept else "#999999"
        if node.parent >= 0:
            x, y = (depths[node.parent], depths[i]), (heights[node.parent], heights[i])
            axes.plot(x, y, color=colour, linewidth=2.4 if node.best else 0.9, zorder=1)
        axes.text(depths[i], heights[i], plain(node.label), ha="center", va="center", fontsize=9, color=colour,
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


def plain(text: str) -> str:
    """A text as it is: a dollar would begin a formula, and not every character can be drawn."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text).replace("$", r"\$")


def panel(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure of one empty panel, `size` in inches."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def legend(figure: Figure, axes: Axes) -> None:
    """Names the lines of a panel under it."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        with mpl.rc_context(SETTINGS):
            figure.legend(
                handles, map(plain, labels), loc="outside lower center", ncols=2 if len(labels) in (2, 4) else 3
            )
