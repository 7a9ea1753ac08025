"""XLA's text of a compiled program, as instructions. Of CPUs, GPUs and TPUs, from JAX 0.10 to 0.12."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "bf16": 16, "c64": 64, "c128": 128}  # of others, their names say it: s4, f8e4m3fn, u32


class Array(NamedTuple):
    """The type of an array. `near`: it does not lie in the device's main memory, but on the chip (or in the host's)."""

    dtype: str
    dims: tuple[int, ...]
    near: bool = False

    @property
    def size(self) -> int:
        """Its bytes."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(found[0]) if (found := re.findall(r"\d+", self.dtype)) else 0
        return math.prod(self.dims) * bits // 8

    @property
    def far_bytes(self) -> int:
        """Its bytes in the device's main memory."""
        return 0 if self.near else self.size


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = results opcode(operands), attributes`; a tuple's results are flattened."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses
    attributes: str

    def called(self, *keys: str) -> tuple[str, ...]:
        """The computations that these attributes name, such as `body`."""
        found: list[str] = []
        for key in keys:
            for several, one in re.findall(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.attributes):
                found += [name.strip().lstrip("%") for name in (several or one).split(",")]
        return tuple(found)

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """Where in the traced program it comes from: names of functions and modules, between slashes."""
        found = re.search(r'\bop_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def fuses(self) -> bool:
        """Whether it is a fusion, of which an asynchronous one only starts (GPUs)."""
        return self.opcode in ("fusion", "fusion-start")


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order in which they run; `root` is the name of the last result."""

    instructions: Mapping[str, Instruction]
    root: str

    def users(self, name: str) -> Iterator[tuple[Instruction, int]]:
        """The instructions that read a value, and as which operand."""
        for instruction in self.instructions.values():
            for index, operand in enumerate(instruction.operands):
                if operand == name:
                    yield instruction, index

    def parameter(self, index: int) -> Instruction | None:
        """Its argument of this number."""
        for instruction in self.instructions.values():
            if instruction.opcode == "parameter" and instruction.inside.strip() == str(index):
                return instruction
        return None

    def arrays(self, name: str) -> tuple[Array, ...]:
        """The types of a value; none for a name that is not of this computation."""
        return self.instructions[name].results if name in self.instructions else ()


class Module(NamedTuple):
    """A program: its computations, and the name of the one that runs first."""

    computations: Mapping[str, Computation]
    entry: str


def read(text: str) -> Module:
    """The program of `jitted.lower(...).compile().as_text()`."""
    computations: dict[str, Computation] = {}
    name = entry = root = ""
    instructions: dict[str, Instruction] = {}
    for line in _lines(text):
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name, root, instructions = header[2], "", {}
            entry = name if header[1] else entry
        elif re.match(r"\}(,|$)", line):
            computations[name] = Computation(instructions, root)
        elif (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line, re.DOTALL)) and (
            instruction := _instruction(found[2], found[3])
        ):
            instructions[instruction.name] = instruction
            root = instruction.name if found[1] else root
    return Module(computations, entry)


# What begins a line: an instruction, the end or the head of a computation, or that of the program.
_BEGINNING = re.compile(
    r"\s+(ROOT )?%?[\w.\-]+ = |\}(,|$)|(ENTRY )?%[\w.\-]+ .*\{$|(ENTRY )?[\w.\-]+ \(.*\{$|HloModule"
)


def _lines(text: str) -> Iterator[str]:
    """Lines, each with those that continue it: attributes of kernels are written over several."""
    waiting = ""
    for line in text.splitlines():
        if _BEGINNING.match(line):
            if waiting:
                yield waiting
            waiting = line
        elif waiting and not re.match(r"\}(,|$)", waiting):
            waiting += f"\n{line}"
    if waiting:
        yield waiting


def _instruction(name: str, text: str) -> Instruction | None:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    found = re.match(r"\s*([\w\-]+)\(", text[end:])
    if not found:
        return None
    opens = end + found.end() - 1
    closes = _closing(text, opens)
    inside = text[opens + 1 : closes]
    return Instruction(
        name, found[1], _arrays(text[:end]), tuple(re.findall(r"%([\w.\-]+)", inside)), inside, text[closes + 1 :]
    )


def _closing(text: str, at: int) -> int:
    """The index of the parenthesis that closes the one at `at`."""
    depth = 0
    for index in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?", text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in re.findall(r"\d+", dims))
        found.append(Array(dtype, sizes, bool(space and int(space[1]))))
    return tuple(found)
