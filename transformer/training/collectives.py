"""The collectives of a compiled step, parsed from its text."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


class Collective(NamedTuple):
    """One operation of the program; `times` is the product of the trip counts of the loops around it."""

    kind: str
    result_bytes: int  # of its result on one device
    devices: int  # that take part in it together
    times: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends per step with the ring algorithms (Patarasuk & Yuan 2009): for n devices and a
        result of b bytes, an all-gather sends b (n - 1) / n, an all-reduce twice that, a reduce-scatter b (n - 1)."""
        n, b = self.devices, self.result_bytes
        share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0, "collective-permute": 1.0}
        return self.times * b * share.get(self.kind, (n - 1) / n)


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program (`jitted.lower(...).compile().as_text()`) over `devices` devices."""
    found: dict[str, list[tuple[str, int, int]]] = defaultdict(list)  # of each computation
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)  # the computations that it calls, and how often
    name = entry = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = header[2]
            entry = name if header[1] else entry
            continue
        for called in re.findall(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)", line):
            turns = re.search(r"known_trip_count[^0-9]*?(\d+)", line) if "body=" in line else None
            calls[name].append((called, int(turns[1]) if turns else 1))
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            calls[name] += [(branch.strip().lstrip("%"), 1) for branch in branches.split(",")]
        if operation := re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line):
            arrays = [_size(*match) for match in re.findall(r"(\w+)\[([\d,]*)\]", operation[1])]
            if operation[3] and operation[2] in ("all-gather", "collective-permute"):
                arrays = arrays[len(arrays) // 2 :]  # an asynchronous start also returns its operands
            found[name].append((operation[2], sum(arrays), _group(line, devices)))

    times: dict[str, int] = defaultdict(int)

    def visit(computation: str, turns: int) -> None:
        times[computation] += turns
        for called, more in calls[computation]:
            visit(called, turns * more)

    visit(entry, 1)
    return [Collective(*one, times[name]) for name, several in found.items() for one in several if times[name]]


def _size(kind: str, dimensions: str) -> int:
    return _BYTES.get(kind, 4) * math.prod(int(size) for size in dimensions.split(",") if size)


def _group(line: str, devices: int) -> int:
    """How many devices take part: groups are written {{0,1},{2,3}} or [groups,size]<=[devices]."""
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(groups[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(groups[1].split(","))
    return devices
