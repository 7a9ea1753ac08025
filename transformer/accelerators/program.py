"""What a compiled program does: its loops, branches, kernels and collectives, and each operation's FLOPs and bytes,
times how often it runs."""

import dataclasses
import re
from collections import Counter
from typing import NamedTuple

from transformer.accelerators import hlo
from transformer.accelerators.exchange import Collective, collectives_of
from transformer.accelerators.hlo import Computation, Instruction, Module
from transformer.accelerators.products import Seen, everything, kernel, products
from transformer.accelerators.traffic import moved


class Op(NamedTuple):
    """One operation of the program, of one device; `times` is the product of the trips of the loops around it."""

    name: str
    source: str  # where in the traced program it comes from
    flops: float  # of its products, once
    single: float  # of them, those of float32 operands
    moved: int  # bytes read from and written to main memory, once
    times: int
    beside: bool = False  # it runs beside what comes next, as a copy ahead of its use


class Loop(NamedTuple):
    source: str
    trips: int | None  # None: not known before it runs
    times: int  # that it is begun


@dataclasses.dataclass(frozen=True)
class Program:
    """A step as compiled, of one device. Of a branch only the collectives are counted: which branch runs is not
    known."""

    ops: tuple[Op, ...]
    loops: tuple[Loop, ...]
    branches: int
    kernels: Counter[str]  # name -> calls a step
    collectives: tuple[Collective, ...]

    @property
    def flops(self) -> float:
        """Of all products, of one device."""
        return sum(op.flops * op.times for op in self.ops)


def read(text: str, devices: int, seen: Seen = everything) -> Program:
    """The program of `jitted.lower(...).compile().as_text()` over `devices` devices. `seen`: the share of its scores
    that an attention computes, for kernels whose call does not tell."""
    module = hlo.read(text)
    ops: list[Op] = []
    loops: list[Loop] = []
    kernels: Counter[str] = Counter()
    sent: list[Collective] = []
    branches = 0

    def visit(name: str, times: int, beside: bool, certain: bool) -> None:
        nonlocal branches
        computation = module.computations[name]
        sent.extend(collectives_of(computation, module, times, devices))
        for one in computation.instructions.values():
            if one.opcode == "while":
                trips = trips_of(one, module)
                loops.append(Loop(one.source, trips, times))
                visit(one.called("body")[0], times * (1 if trips is None else trips), beside, certain)
            elif one.opcode == "conditional":
                branches += 1
                for branch in one.called("branch_computations", "true_computation", "false_computation"):
                    visit(branch, times, beside, False)
            elif one.opcode in ("call", "async-start"):
                for called in one.called("to_apply", "calls"):
                    visit(called, times, beside or one.opcode == "async-start", certain)
            else:
                called_kernel = kernel(one)
                if called_kernel is not None:
                    kernels[called_kernel] += times
                flops, single = products(one, computation, module, seen)
                size = moved(one, computation, module)
                if certain and (flops or size):
                    aside = beside or one.opcode.endswith("-start")
                    ops.append(Op(one.name, one.source, flops, single, size, times, aside))

    visit(module.entry, 1, False, True)
    return Program(tuple(ops), tuple(loops), branches, kernels, tuple(sent))


def collectives(text: str, devices: int) -> tuple[Collective, ...]:
    """The collectives of a compiled program over `devices` devices."""
    return read(text, devices).collectives


def trips_of(loop: Instruction, module: Module) -> int | None:
    """How often a loop's body runs: as the compiler says, or else the constant that its condition compares with a
    counter from 0."""
    if known := re.search(r"known_trip_count[^0-9]*?(\d+)", loop.attributes):
        return int(known[1])
    condition = module.computations[loop.called("condition")[0]]
    directions = {one.attributes for one in _compares(condition, module)}
    limits = [
        int(one.inside)
        for one in condition.instructions.values()
        if one.opcode == "constant" and re.fullmatch(r"\d+", one.inside.strip())
    ]
    if len(limits) != 1 or not any("direction=LT" in attributes for attributes in directions):
        return None
    return limits[0]


def _compares(computation: Computation, module: Module) -> list[Instruction]:
    found = [one for one in computation.instructions.values() if one.opcode == "compare"]
    for one in computation.instructions.values():
        for name in one.called("calls"):
            found += _compares(module.computations[name], module)
    return found
