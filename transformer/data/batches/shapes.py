"""The shapes to which examples with one or two sides are padded: few, so that few programs are compiled."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

SAVES = 0.05  # share of all positions that a narrower shape must save
MOST = 2  # shapes of a bucket on average

Cell = tuple[int, ...]  # the bucket of each side


def choose_shapes(cells: np.ndarray, widths: list[tuple[int, ...]]) -> list[Cell]:
    """The shapes that examples are padded to, from narrow to wide; every example fits into one.

    `cells` [n, sides] are the narrowest buckets that each side fits into, `widths` the padded lengths of each bucket,
    one for each side. All sides share the bucket of the longest one, unless so many pairs have a short side that a
    narrower bucket for it saves SAVES of all positions, rows counted as filled.
    """
    found, counts = np.unique(cells, axis=0, return_counts=True)
    buckets = sorted({int(cell.max()) for cell in found})
    sides = cells.shape[1]
    shapes = [(bucket,) * sides for bucket in buckets]
    if sides == 1:
        return shapes

    def use(shapes: list[Cell]) -> list[Cell]:
        """The shape of each cell."""
        return [shapes[fitting(tuple(cell), shapes, widths)] for cell in found.tolist()]

    def positions(shapes: list[Cell]) -> int:
        each = [_positions(shape, widths) for shape in use(shapes)]
        return sum(count * size for count, size in zip(counts.tolist(), each, strict=True))

    now = whole = positions(shapes)
    narrower = [
        shape
        for bucket in buckets
        for shape in itertools.product(range(bucket + 1), repeat=sides)
        if max(shape) == bucket and shape not in shapes
    ]
    while narrower:
        best = min(narrower, key=lambda shape: positions([*shapes, shape]))
        narrower.remove(best)
        saved = now - positions([*shapes, best])
        if saved < SAVES * whole:
            break
        if len(set(use([*shapes, best]))) <= MOST * len(buckets):
            shapes, now = [*shapes, best], now - saved
    return _ordered(set(use(shapes)), widths)


def known_shapes(cells: np.ndarray, widths: list[tuple[int, ...]], known: Sequence[Cell]) -> list[Cell]:
    """As `choose_shapes`, of shapes that are `known`, and of equal buckets where a cell fits into none of them."""
    found = [tuple(cell) for cell in np.unique(cells, axis=0).tolist()]
    buckets = {max(cell) for cell in found}
    shapes = {shape for shape in known if max(shape) in buckets}
    others = [cell for cell in found if not any(max(s) == max(cell) and contains(s, cell) for s in shapes)]
    return _ordered(shapes | {(max(cell),) * len(cell) for cell in others}, widths)


def _ordered(shapes: Iterable[Cell], widths: list[tuple[int, ...]]) -> list[Cell]:
    return sorted(shapes, key=lambda shape: (max(shape), _positions(shape, widths), shape))


def fitting(cell: Cell, shapes: list[Cell], widths: list[tuple[int, ...]]) -> int:
    """The index of the shape with the fewest positions that holds a cell and has its longest bucket. ValueError: there
    is none."""
    held = [number for number, shape in enumerate(shapes) if max(shape) == max(cell) and contains(shape, cell)]
    return min(held, key=lambda number: _positions(shapes[number], widths))


def contains(shape: Cell, cell: Cell) -> bool:
    """Whether each side of the cell fits into the shape."""
    return all(wide >= narrow for wide, narrow in zip(shape, cell, strict=True))


def _positions(shape: Cell, widths: list[tuple[int, ...]]) -> int:
    return sum(widths[bucket][side] for side, bucket in enumerate(shape))
