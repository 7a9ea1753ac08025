"""The roofline of a compiled step (Williams et al. 2009): no operation is faster than its products at the peak, nor
than its bytes at the bandwidth of the memory."""

from typing import NamedTuple

from transformer.accelerators.program import Op, Program
from transformer.accelerators.sheets import Sheet


class Row(NamedTuple):
    """Operations of one name and size, of all their times together."""

    name: str
    source: str
    times: int
    flops: float
    moved: float  # bytes
    seconds: float


class Bound(NamedTuple):
    """Seconds that a step takes at least. `computing`: the operations that run one after another. `reading`: all bytes
    at the memory's bandwidth, copies that run beside others included. `waiting`: the collectives beside which nothing
    is computed; `sending`: all of them. A step is no shorter than any of these three: computing and waiting; reading;
    sending. What a GPU's cache holds between two operations counts as read from memory: there small operations can be
    faster."""

    computing: float
    reading: float
    waiting: float
    sending: float
    rows: tuple[Row, ...]  # the longest first

    @property
    def seconds(self) -> float:
        return max(self.computing + self.waiting, self.reading, self.sending)


def bound(program: Program, sheet: Sheet) -> Bound:
    """The least time of a step on the accelerator of a data sheet. What runs in a branch counts nothing."""
    rows: dict[tuple[str, float, int], Row] = {}
    for op in program.ops:
        if op.beside:
            continue
        key = (_kind(op), op.flops, op.moved)
        seconds = op.times * max(products_seconds(op, sheet), op.moved / sheet.bandwidth)
        so_far = rows.get(key, Row(_kind(op), op.source, 0, 0.0, 0.0, 0.0))
        rows[key] = so_far._replace(
            times=so_far.times + op.times,
            flops=so_far.flops + op.times * op.flops,
            moved=so_far.moved + op.times * op.moved,
            seconds=so_far.seconds + seconds,
        )
    sent = [(one.sent_bytes / sheet.link, one.overlaps) for one in program.collectives]
    return Bound(
        computing=sum(row.seconds for row in rows.values()),
        reading=sum(op.times * op.moved for op in program.ops) / sheet.bandwidth,
        waiting=sum(seconds for seconds, overlaps in sent if not overlaps),
        sending=sum(seconds for seconds, _ in sent),
        rows=tuple(sorted(rows.values(), key=lambda row: -row.seconds)),
    )


def products_seconds(op: Op, sheet: Sheet) -> float:
    """Seconds of an operation's products at the peak of their type."""
    return (op.flops - op.single) / sheet.flops + op.single / sheet.single


def utilisation(model_flops: float, seconds: float, devices: int, peak: float) -> float:
    """MFU: the FLOPs that the model needs, recomputation aside, over those that the devices could do in that time."""
    return model_flops / (seconds * devices * peak)


def _kind(op: Op) -> str:
    """The instruction's name without its number."""
    return op.name.rstrip("0123456789").removesuffix(".").removesuffix(".clone")
