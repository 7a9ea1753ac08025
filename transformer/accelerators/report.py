"""A compiled step as lines of text."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from transformer.accelerators.compiling import Step
from transformer.accelerators.exchange import Collective
from transformer.accelerators.products import is_attention
from transformer.accelerators.program import Loop, Program
from transformer.accelerators.roofline import Bound, Row, utilisation
from transformer.accelerators.sheets import peak

ROWS = 12  # of the table of operations


def step_lines(step: Step, model_flops: float | None) -> list[str]:
    """Memory, kernels, loops, collectives and the roofline of a step. `model_flops`: what the model needs, on all
    devices together; None where no formula counts it."""
    program, memory, sheet = step.program, step.memory, step.topology.sheet
    devices = step.layout.mesh.size
    kernels = [f"{name} x {calls:,}" for name, calls in sorted(program.kernels.items())]
    each = f" of {step.length} tokens" if step.length > 1 else ""
    lines = [
        f"compiled for {devices} x {step.topology.chip} ({versions(step.topology.chip)}) in {step.seconds:.0f} s: "
        f"{step.rows} rows{each}, {step.at_once} of a device at a time",
        f"memory of a device: {memory.held / 1e9:.2f} GB held and {memory.work / 1e9:.2f} GB of work, of "
        f"{memory.available / 1e9:.0f} GB",
        f"kernels, calls a step: {', '.join(kernels) or 'none but those that XLA writes itself'}",
        f"loops: {'; '.join(map(loop_line, program.loops)) or 'none'}",
        f"branches: {program.branches or 'none'}",
        *sent_lines(program.collectives),
        *bound_lines(step.bound),
    ]
    if model_flops is None:
        return [*lines, "model FLOPs utilisation: no formula counts this model's FLOPs"]
    share = utilisation(model_flops, step.bound.seconds, devices, peak(sheet, step.config.model.dtype))
    return [
        *lines,
        f"model FLOPs utilisation: at most {share:.1%}, of {peak(sheet, step.config.model.dtype) / 1e12:,.0f} TFLOP/s "
        f"in {step.config.model.dtype}; the model needs {model_flops / 1e12:,.1f} TFLOP a step",
    ]


def attention_line(program: Program, chosen: Iterable[str]) -> str:
    """Whether the program calls the kernels that its layers have chosen; `chosen`: a line a layer."""
    calls = {name: number for name, number in program.kernels.items() if is_attention(name)}
    fused = sum(", fused:" in line for line in chosen)
    if calls or not fused:
        said = ", ".join(f"{name} x {number:,}" for name, number in sorted(calls.items()))
        return f"kernels of attention in the program, calls a step: {said or 'none'}"
    return f"kernels of attention in the program: none, though {fused} layers chose one"


def loop_line(loop: Loop) -> str:
    """How often a loop runs, and where it comes from."""
    trips = "unknown" if loop.trips is None else f"{loop.trips:,}"
    return f"{loop.times:,} x {trips} in {_place(loop.source)}"


def sent_lines(collectives: Iterable[Collective]) -> list[str]:
    """By kind, and whether the device computes meanwhile: how often, the bytes that a device sends, and the largest
    result."""
    kinds: dict[tuple[str, bool], tuple[int, float, int]] = {}
    for one in collectives:
        times, sent, largest = kinds.get((one.kind, one.overlaps), (0, 0.0, 0))
        kinds[one.kind, one.overlaps] = times + one.times, sent + one.sent_bytes, max(largest, one.result_bytes)
    return ["collectives, of one device and step:" + ("" if kinds else " none")] + [
        f"  {kind:18} {'beside computing' if overlaps else 'waited for':16} {times:7,} times, {sent:16,.0f} bytes sent,"
        f" the largest result {largest:14,}"
        for (kind, overlaps), (times, sent, largest) in sorted(kinds.items())
    ]


def bound_lines(bound: Bound) -> list[str]:
    """The roofline as a table: the operations that take longest, and the least time of a step."""
    lines = [f"{'roofline, of one device':44} {'times':>7} {'TFLOP':>9} {'GB':>9} {'ms':>9}   from"]
    rest = bound.rows[ROWS:]
    others = Row(
        f"{len(rest)} others",
        "",
        sum(row.times for row in rest),
        sum(row.flops for row in rest),
        sum(row.moved for row in rest),
        sum(row.seconds for row in rest),
    )
    lines += [
        f"  {row.name[:42]:42} {row.times:7,} {row.flops / 1e12:9.3f} {row.moved / 1e9:9.3f} {row.seconds * 1e3:9.3f}"
        f"   {_place(row.source)}"
        for row in (*bound.rows[:ROWS], others)
    ]
    lines.append(
        f"a step takes at least {bound.seconds * 1e3:.2f} ms: operations one after another "
        f"{bound.computing * 1e3:.2f}, collectives waited for {bound.waiting * 1e3:.2f} (all: "
        f"{bound.sending * 1e3:.2f}), all bytes of memory {bound.reading * 1e3:.2f}"
    )
    return lines


def versions(chip: str) -> str:
    """The compiler of a chip, with JAX's version."""
    named = ["jax", "libtpu" if chip.startswith("v") else "jax-cuda13-plugin"]
    found = []
    for package in named:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(package)
    return ", ".join(found)


def _place(source: str) -> str:
    """The end of an operation's source: its module and function."""
    return source if len(source) <= 60 else f"...{source[-57:]}"
