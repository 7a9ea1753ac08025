"""Bytes that an instruction moves to and from a device's main memory: what it reads of its operands, and its results.
What lies on the chip moves nothing, slices count as much as is read, and what is updated in place as much as is
written."""

from transformer.accelerators.hlo import Array, Computation, Instruction, Module
from transformer.accelerators.products import BOOKKEEPING

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# Views of memory, and what contains other instructions.
_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "domain",
    "get-dimension-size",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # opcode -> which operand has what is written
_SAME = ("bitcast", "convert", "copy", "reshape", "transpose")  # each number of the result is one of the operand


def moved(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Bytes read from and written to main memory by one instruction. Collectives are counted elsewhere."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or not _moves(instruction):
        return 0
    operands = [array for name in instruction.operands for array in computation.arrays(name)]
    if opcode == "copy-start":  # (where to, where from, ...)
        return sum(array.far_bytes for array in instruction.results[:2])
    if opcode.endswith("slice-start"):  # ((where from), where to, ...)
        source, target = instruction.results[0], instruction.results[len(operands)]
        return target.size * ((not source.near) + (not target.near))
    if opcode.endswith("-start") and not instruction.fuses:
        return 0
    read = sum(
        min(array.size, _read(instruction, index, array, computation, module))
        for index, name in enumerate(instruction.operands)
        for array in computation.arrays(name)
        if not array.near
    )
    return read + _written(instruction, computation, module)


def _moves(instruction: Instruction) -> bool:
    collective = instruction.opcode.removesuffix("-start") in COLLECTIVES
    return not collective and instruction.target not in BOOKKEEPING


def _fused(instruction: Instruction, module: Module) -> Computation | None:
    names = instruction.called("calls") if instruction.fuses else ()
    return module.computations.get(names[0]) if names else None


def _read(user: Instruction, index: int, array: Array, computation: Computation, module: Module) -> int:
    """Bytes that an instruction reads of its operand number `index`, if it is that array."""
    if user.opcode == "tuple" or not _moves(user):
        return 0
    if user.opcode in _SLICES and index == 0:
        return _as(array, user.results[0])
    if user.opcode in _UPDATES and index == 0:
        return 0
    if (inner := _fused(user, module)) and (parameter := inner.parameter(index)):
        return _read_of(parameter, inner, module)
    return array.size


def _read_of(value: Instruction, computation: Computation, module: Module) -> int:
    """Bytes that a fused computation reads of a value."""
    array, total = value.results[0], 0
    for user, index in computation.users(value.name):
        if user.opcode in _SAME:
            total += _read_of(user, computation, module) * array.size // max(user.results[0].size, 1)
            total += array.size if user.name == computation.root else 0
        else:
            total += _read(user, index, array, computation, module)
    return min(total, array.size)


def _as(array: Array, part: Array) -> int:
    """Bytes of as many numbers as `part` has, in the type of `array`."""
    return Array(array.dtype, part.dims).size


def _written(instruction: Instruction, computation: Computation, module: Module) -> int:
    inner = _fused(instruction, module)
    if inner is None:
        if (update := _UPDATES.get(instruction.opcode)) is not None:
            sizes = computation.arrays(instruction.operands[update])
            return sum(array.size for array in sizes) if not instruction.results[0].near else 0
        return sum(array.far_bytes for array in instruction.results)
    root = inner.instructions[inner.root]
    parts = root.operands if root.opcode == "tuple" else (inner.root,)
    # An asynchronous fusion's own results begin with its operands.
    arrays = root.results if instruction.opcode == "fusion-start" else instruction.results
    if len(arrays) != len(parts):
        return sum(array.far_bytes for array in arrays)
    written = (
        min(array.size, _made(inner, name, module)) for array, name in zip(arrays, parts, strict=True) if not array.near
    )
    return sum(written)


def _made(computation: Computation, name: str, module: Module) -> int:
    """Bytes that a fused computation writes for one of its results."""
    instruction = computation.instructions[name]
    if instruction.opcode == "parameter" or not _moves(instruction):
        return 0
    if instruction.opcode == "bitcast":
        return _made(computation, instruction.operands[0], module)
    if (update := _UPDATES.get(instruction.opcode)) is not None:
        return sum(array.size for array in computation.arrays(instruction.operands[update]))
    if (inner := _fused(instruction, module)) and inner.instructions[inner.root].opcode != "tuple":
        return _made(inner, inner.root, module)
    return sum(array.size for array in instruction.results)
