"""Batches of examples of similar length: the base class for pairs, labelled texts, recordings and span corruption."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch, Batches, cut, permutation, philox, widths_needed
from transformer.data.batches.facts import Facts
from transformer.data.batches.shapes import Cell, choose_shapes, contains, fitting, known_shapes
from transformer.data.batches.too_long import TooLong, decide
from transformer.errors import UserError

Widths = tuple[int, ...]  # the padded length of each side


class BucketedBatches(Batches):
    """A batch holds examples of similar length, padded to one width for each side: one of `data.buckets`.

    `lengths` [n, sides], special tokens included, are those of each example; its bucket is that of its longest side,
    which also gives the rows of a batch. The other side is padded to the same bucket, or to a narrower one where this
    saves much (`choose_shapes`). `widths` are the padded lengths of the sides in each bucket, if not the bucket's own.
    Examples that do not fill a batch move to the next shape that holds them, so that few batches of an epoch have
    padding rows: one of the widest shape, or of each, where none holds the other.

    Examples longer than max_len are treated as `data.too_long` says, here and in `evaluation`; where it says nothing,
    "drop" leaves them out of training only. `told`: what was done with them already. `shapes`: those to use, of another
    part of the same split, so that all parts have the same ones.
    """

    noun = "examples"
    unit = "tokens"
    rules: tuple[str, ...] = ("drop", "cut", "refuse")
    too_long: TooLong

    def __init__(
        self,
        lengths: np.ndarray,
        data: DataConfig,
        widths: list[Widths] | None = None,
        told: TooLong | None = None,
        shapes: Sequence[Cell] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(data=data, **others)
        self._buckets = widths_needed(data)
        self.too_long = told or decide(lengths.max(axis=1, initial=0), data, self.rules, self.noun, self.unit)
        self._rule = self.too_long.rule
        if self._rule == "cut":
            lengths = np.minimum(lengths, data.max_len)
        sides = lengths.shape[1]
        self._lengths = lengths
        self._widths = widths or [(width,) * sides for width in self._buckets]
        self._kept = np.flatnonzero(lengths.max(axis=1, initial=0) <= data.max_len)
        if self._rule == "drop" and data.too_long:
            self._evaluated = self._kept
        else:
            self._evaluated = np.arange(len(lengths))

        columns = [[each[side] for each in self._widths] for side in range(sides)]
        cells = np.stack([np.searchsorted(own, lengths[:, side]) for side, own in enumerate(columns)], axis=1)
        self.shapes = (
            choose_shapes(cells[self._kept], self._widths)
            if shapes is None
            else known_shapes(cells[self._kept], self._widths, shapes)
        )
        self._shape_of = np.full(len(lengths), -1)  # of each example; -1: none holds it
        inside = np.flatnonzero(np.isin(cells.max(axis=1, initial=0), [max(shape) for shape in self.shapes]))
        for cell in np.unique(cells[inside], axis=0):
            alike = inside[(cells[inside] == cell).all(axis=1)]
            if any(max(shape) == cell.max() and contains(shape, tuple(cell)) for shape in self.shapes):
                self._shape_of[alike] = fitting(tuple(cell), self.shapes, self._widths)
        # Of each shape: the batches of an epoch, equal for all epochs, and where examples that fill none move to.
        self._counts: list[int] = []
        self._next: list[int | None] = []
        sizes = np.bincount(self._shape_of[self._kept], minlength=len(self.shapes))
        for number, shape in enumerate(self.shapes):
            wider = [n for n in range(number + 1, len(self.shapes)) if contains(self.shapes[n], shape)]
            size, rows = int(sizes[number]), self._rows_of_shape(number)
            self._counts.append(size // rows if wider else -(-size // rows))
            self._next.append(wider[0] if wider else None)
            if wider:
                sizes[wider[0]] += size % rows

    @property
    def evaluated(self) -> np.ndarray:
        return self._evaluated

    @property
    def steps_per_epoch(self) -> int:
        steps = sum(self._counts)
        if not steps:
            raise UserError(
                f"None of {len(self._lengths)} {self.noun} fits into data.max_len={self.data.max_len}: raise it, or "
                "give shorter sentences."
            )
        return steps

    @property
    def facts(self) -> Facts:
        shapes = [
            (count, (self._rows_of_shape(number), *self._widths_of(number)))
            for number, count in enumerate(self._counts)
            if count
        ]
        positions = [np.multiply(count * rows, widths) for count, (rows, *widths) in shapes]
        evaluated = sorted(set(self._shape_of[self._kept].tolist()))
        return Facts(
            steps=sum(self._counts),
            rows=len(self._lengths),
            kept=len(self._kept),
            dropped=len(self._lengths) - len(self._kept),
            filled=tuple(self._lengths[self._kept].sum(axis=0).tolist()),
            positions=tuple(np.sum(positions, axis=0).tolist()) if shapes else (0,) * self._lengths.shape[1],
            shapes=tuple(shape for _, shape in shapes),
            evaluated=tuple((self._rows_of_shape(number), *self._widths_of(number)) for number in evaluated),
            too_long=self.too_long,
        )

    @property
    def report(self) -> dict[str, Any]:
        return self.facts.report(sides=True)

    @property
    def evaluation_shapes(self) -> list[tuple[int, ...]]:
        return list(self.facts.evaluated)

    def _widths_of(self, number: int) -> Widths:
        """The padded lengths of a shape."""
        return tuple(self._widths[bucket][side] for side, bucket in enumerate(self.shapes[number]))

    def _rows_of_shape(self, number: int) -> int:
        return self._rows_of(self._buckets[max(self.shapes[number])])

    def _epoch(self, epoch: int) -> list[tuple[Widths, np.ndarray]]:
        bits = philox(self.seed, epoch)
        examples = self._kept[permutation(bits, len(self._kept))]
        shapes = self._shape_of[examples]
        plan: list[tuple[Widths, np.ndarray]] = []
        moved = [[examples[:0]] for _ in self.shapes]
        for number, (count, following) in enumerate(zip(self._counts, self._next, strict=True)):
            rows = self._rows_of_shape(number)
            members = np.concatenate([*moved[number], examples[shapes == number]])
            plan.extend((self._widths_of(number), batch) for batch in cut(members[: count * rows], rows))
            if following is not None:
                moved[following].append(members[count * rows :])
        return [plan[i] for i in permutation(bits, len(plan))]

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every example that is evaluated exactly once, from short to long; widths beyond the last bucket are multiples
        of it, each with one width of the other side. With `max_len`, longer examples are left out, for a model that
        cannot take them; `longer_than` counts them."""
        chosen = self._evaluated
        if max_len is not None:
            chosen = chosen[self._lengths[chosen].max(axis=1, initial=0) <= max_len]
        groups = [
            (self._rows_of_shape(number), self._widths_of(number), chosen[self._shape_of[chosen] == number])
            for number in range(len(self.shapes))
        ]
        others = chosen[self._shape_of[chosen] < 0]
        padded = self._padded(self._lengths[others])
        for longest in np.unique(padded.max(axis=1, initial=0)).tolist():
            alike = padded.max(axis=1) == longest
            widths = tuple(padded[alike].max(axis=0).tolist())
            groups.append((self._rows_of(longest), widths, others[alike]))
        for rows, widths, members in sorted(groups, key=lambda group: (max(group[1]), sum(group[1]))):
            for batch in cut(members, rows):
                yield self._local(widths, batch)

    def _padded(self, lengths: np.ndarray) -> np.ndarray:
        """The bucket that each length fits into, or a multiple of the last one."""
        last = self._buckets[-1]
        bucket = np.searchsorted(self._buckets, lengths)
        within = np.asarray(self._buckets)[np.minimum(bucket, len(self._buckets) - 1)]
        return np.where(bucket < len(self._buckets), within, -(-lengths // last) * last)

    def longer_than(self, max_len: int) -> int:
        return int((self._lengths[self._evaluated].max(axis=1, initial=0) > max_len).sum())

    @abc.abstractmethod
    def _make(self, width: Widths, rows: np.ndarray) -> Batch: ...
