"""Collectives of a compiled program: what the devices send each other, and whether they compute meanwhile."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from transformer.accelerators.hlo import Array, Computation, Instruction, Module
from transformer.accelerators.products import BOOKKEEPING
from transformer.accelerators.traffic import COLLECTIVES, moved


class Collective(NamedTuple):
    """One operation of the program; `times` is the product of the trip counts of the loops around it."""

    kind: str
    result_bytes: int  # of its result on one device
    devices: int  # that take part in it together
    times: int
    overlaps: bool = False  # the device computes while it sends

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends per step with the ring algorithms (Patarasuk & Yuan 2009): for n devices and a
        result of b bytes, an all-gather sends b (n - 1) / n, an all-reduce twice that, a reduce-scatter b (n - 1)."""
        n, b = self.devices, self.result_bytes
        share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0, "collective-permute": 1.0}
        return self.times * b * share.get(self.kind, (n - 1) / n)


def collectives_of(computation: Computation, module: Module, times: int, devices: int) -> Iterator[Collective]:
    """The collectives of a computation that runs `times` times a step; `devices` take part where no groups are named.

    GPUs and CPUs write a collective as an instruction, or as its start and its end. TPUs also fuse it: into a start, an
    end, and the computations between them, all of one channel; an all-reduce fused with a slice of its result is a
    reduce-scatter."""
    order = list(computation.instructions.values())
    channels: dict[str, list[int]] = {}  # channel -> the fusions with a part of its collective
    for at, one in enumerate(order):
        for inner in _fused(one, module):
            channels.setdefault(_channel(inner) or inner.name, []).append(at)
    for at, one in enumerate(order):
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            size = sum(array.size for array in _results(one))
            overlaps = one.opcode != kind and _computes(order, at, _end(order, at), computation, module)
            yield Collective(kind, size, _group(one.attributes, devices), times, overlaps)
        for inner in _fused(one, module):
            parts = channels[_channel(inner) or inner.name]
            if parts[0] != at:
                continue
            overlaps = len(parts) > 2 or _computes(order, at, parts[-1], computation, module)
            kind, arrays = inner.opcode.removesuffix("-start"), _results(inner)
            if kind == "all-reduce" and sum(a.size for a in one.results) < sum(a.size for a in arrays):
                kind, arrays = "reduce-scatter", one.results
            size = sum(array.size for array in arrays)
            yield Collective(kind, size, _group(inner.attributes, devices), times, overlaps)


def _fused(instruction: Instruction, module: Module) -> Iterator[Instruction]:
    """The collectives in a fusion."""
    if instruction.fuses or instruction.opcode == "async-start":
        for name in instruction.called("calls"):
            for inner in module.computations[name].instructions.values():
                if inner.opcode.removesuffix("-start") in COLLECTIVES:
                    yield inner
                yield from _fused(inner, module)


def _channel(instruction: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else ""


def _results(one: Instruction) -> tuple[Array, ...]:
    """The arrays that a collective gives; its start may return its operands before them."""
    count = len(one.operands)
    return one.results[count : 2 * count] if len(one.results) >= 2 * count else one.results[:count]


def _end(order: list[Instruction], start: int) -> int:
    """Where the collective that starts there ends; the last instruction, if that is in another computation."""
    for at in range(start + 1, len(order)):
        if order[at].opcode.endswith("-done") and order[start].name in order[at].operands:
            return at
    return len(order)


def _computes(order: list[Instruction], start: int, end: int, computation: Computation, module: Module) -> bool:
    """Whether anything is computed after `start` and before `end`, in the order in which instructions run."""
    return any(
        one.opcode in ("while", "conditional", "call")
        or (not one.opcode.endswith("-start") and moved(one, computation, module) > 0)
        or (one.opcode == "custom-call" and one.target not in BOOKKEEPING)
        for one in order[start + 1 : end]
    )


def _group(attributes: str, devices: int) -> int:
    """How many devices take part: groups are written {{0,1},{2,3}}, [groups,size]<=[devices], or as axes of a mesh:
    mesh['data'=2,'fsdp'=4] {'fsdp'}."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'([\w.]+)'(?::\(\d+\)(\d+))?", mesh[2])  # a part of an axis: 'data':(2)4
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(groups[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(groups[1].split(","))
    return devices
