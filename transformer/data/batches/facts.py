"""What is known of the batches of a split before one is made: sums, which add up over parts of a split."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformer.data.batches.too_long import TooLong

Shape = tuple[int, ...]  # rows over all processes, width of each side


class Facts(NamedTuple):
    """Facts of the batches of a split, equal for all seeds and epochs."""

    steps: int  # of an epoch; 0: there is nothing to train on
    rows: int  # of an epoch that hold text; of examples in buckets: how many there are, kept or not
    kept: int
    dropped: int
    filled: tuple[int, ...]  # of each side, the positions that are not padding
    positions: tuple[int, ...]  # of each side, all of them
    shapes: tuple[Shape, ...]
    evaluated: tuple[Shape, ...]  # shapes of `evaluation(data.max_len)`
    too_long: TooLong

    def report(self, sides: bool) -> dict[str, Any]:
        """`Batches.report`; with `sides`, also of each side."""
        filled = [held / max(positions, 1) for held, positions in zip(self.filled, self.positions, strict=True)]
        return {
            "too_long": self.too_long._asdict(),
            "kept": self.kept,
            "dropped": self.dropped,
            "fill": sum(self.filled) / max(sum(self.positions), 1),
            **({"fills": filled} if sides else {}),
            "shapes": list(self.shapes),
            "steps_per_epoch": self.steps,
        }

    @classmethod
    def stored(cls, values: dict[str, Any]) -> "Facts":
        """From the JSON of `_asdict()`."""
        shapes = {name: tuple(map(tuple, values[name])) for name in ("shapes", "evaluated")}
        sums = {name: tuple(values[name]) for name in ("filled", "positions")}
        return cls(**values | shapes | sums | {"too_long": TooLong(*values["too_long"])})


def added(parts: Sequence[Facts], twice: int = 0) -> Facts:
    """Those of all parts. `twice`: how many texts were counted once more, since they are in two parts."""
    first = parts[0]
    longer = sum(part.too_long.longer for part in parts)
    of = sum(part.too_long.of for part in parts) - twice
    longest = max(part.too_long.longest for part in parts)
    return Facts(
        steps=sum(part.steps for part in parts),
        rows=sum(part.rows for part in parts),
        kept=sum(part.kept for part in parts) - twice,
        dropped=sum(part.dropped for part in parts),
        filled=tuple(map(sum, zip(*(part.filled for part in parts), strict=True))),
        positions=tuple(map(sum, zip(*(part.positions for part in parts), strict=True))),
        shapes=_ordered({shape for part in parts for shape in part.shapes}),
        evaluated=_ordered({shape for part in parts for shape in part.evaluated}),
        too_long=first.too_long._replace(longer=min(longer, of), of=of, longest=longest),
    )


def _ordered(shapes: set[Shape]) -> tuple[Shape, ...]:
    """From narrow to wide."""
    return tuple(sorted(shapes, key=lambda shape: (max(shape[1:]), sum(shape[1:]), shape)))
