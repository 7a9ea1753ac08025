"""python -m experiments.lab.card.compiled [published window_16k window_64k gpt2_124m ...]

Prints the tables of experiments/scaling.md as Markdown: training steps compiled for accelerators whose compiler is
installed here (the extras `tpu` and `gpu`). Nothing is run on any. Words choose groups or configs; all of them take
minutes. A row says what `python -m transformer.describe` says with the flags of its first columns and its caption.
"""

import datetime
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.lab.questions import parse_setting
from transformer.accelerators import compiling, report, topologies
from transformer.accelerators.compiling import Step
from transformer.accelerators.products import is_attention
from transformer.accelerators.program import Program
from transformer.accelerators.roofline import utilisation
from transformer.accelerators.sheets import peak
from transformer.config import Config, load_file, override
from transformer.describe import on_mesh, shapes
from transformer.errors import UserError
from transformer.training.flops import step_flops

CONFIGS = Path(__file__).parent.parent.parent.parent / "configs"
HEADER = [
    "config", "topology", "mesh", "rows of a device at a time", "GB held", "GB of work", "kernels of attention",
    "loops", "branches", "collectives (beside computing)", "GB sent (beside computing)", "ms at least", "MFU at most",
]  # fmt: skip


class Case(NamedTuple):
    """--config=configs/<config>.py --topology=<topology> --mesh=<mesh>"""

    config: str
    topology: str
    mesh: str


class Group(NamedTuple):
    """Cases with the same settings, each a --config.<key>=<value>."""

    cases: tuple[Case, ...]
    settings: tuple[str, ...]


def _window(length: int) -> Group:
    """GPT-2 with a window of 128 in four rows of this length, each split over several devices."""
    settings = (
        "model.dtype=bfloat16", "model.attention=window:128", f"model.max_positions={length}",
        f"data.max_len={length}", f"data.buckets=({length},)", f"data.batch_tokens={4 * length}", "data.row_multiple=4",
        "model.scan_layers=True", "model.remat=dots",
    )  # fmt: skip
    cases = (
        Case("gpt2_124m", "v5e:4x4", "data=4,sequence=4"),
        Case("gpt2_124m", "h100:1x1x8", "data=4,sequence=2"),
    )
    return Group(cases, settings)


GROUPS = {
    "gpt2_v5e": Group((Case("gpt2_124m", "v5e:4x4", "data=4,fsdp=4"),), ("model.dtype=bfloat16", "mesh.accumulate=4")),
    "gpt2_h100": Group((Case("gpt2_124m", "h100:1x1x8", "data=8"),), ("model.dtype=bfloat16", "mesh.accumulate=2")),
    "published": Group(
        (
            Case("gpt2_xl", "v5e:16x16", "data=16,fsdp=16"),
            Case("bert_base", "v5e:4x4", "data=16"),
            Case("t5_small", "v5e:4x4", "data=16"),
            Case("vit_b16", "v5e:8x8", "data=64"),
            Case("paper_base", "v5e:2x4", "data=8"),
            Case("paper_big", "v5e:2x4", "data=8"),
            Case("gpt2_xl", "h100:1x1x8", "fsdp=8"),
            Case("bert_base", "h100:1x1x8", "data=8"),
            Case("t5_small", "h100:1x1x8", "data=8"),
            Case("vit_b16", "h100:1x1x8", "data=8"),
            Case("paper_base", "h100:1x1x8", "data=8"),
            Case("paper_big", "h100:1x1x8", "data=8"),
        ),
        ("model.dtype=bfloat16",),
    ),
    "window_16k": _window(16_384),
    "window_64k": _window(65_536),
}


def config_of(case: Case, settings: Iterable[str]) -> Config:
    """The config that the flags of a case make."""
    config = override(load_file(CONFIGS / f"{case.config}.py"), dict(map(parse_setting, settings)))
    return on_mesh(config, case.mesh)[0]


def row(case: Case, step: Step) -> list[str]:
    """A row of the table, HEADER."""
    program, sent = step.program, step.program.collectives
    aside = [one for one in sent if one.overlaps]
    try:
        flops = step_flops(step.config, shapes(step.config), step.rows, step.length)
        top = peak(step.topology.sheet, step.config.model.dtype)
        share = f"{utilisation(flops, step.bound.seconds, step.layout.mesh.size, top):.1%}"
    except UserError:  # no formula counts this model's FLOPs
        share = "–"
    return [
        case.config,
        f"`{case.topology}`",
        f"`{case.mesh}`",
        f"{step.at_once} of {step.length:,}" if step.length > 1 else str(step.at_once),
        f"{step.memory.held / 1e9:.2f}",
        f"{step.memory.work / 1e9:.2f}",
        attention(program),
        ", ".join(f"{loop.times} x {loop.trips}" if loop.times > 1 else f"{loop.trips}" for loop in program.loops)
        or "none",
        str(program.branches or "none"),
        f"{sum(one.times for one in sent)} ({sum(one.times for one in aside)})",
        f"{sum(one.sent_bytes for one in sent) / 1e9:.2f} ({sum(one.sent_bytes for one in aside) / 1e9:.2f})",
        f"{1000 * step.bound.seconds:.1f}",
        share,
    ]


def attention(program: Program) -> str:
    """Calls of attention's kernels, forward and backward together, by who wrote them."""
    calls: dict[str, int] = {}
    for name, times in program.kernels.items():
        if is_attention(name):
            known = re.search("cudnn|splash", name)
            written = known[0] if known else name
            calls[written] = calls.get(written, 0) + times
    return ", ".join(f"{written} {times}" for written, times in calls.items()) or "none"


def tables(words: Sequence[str]) -> Iterator[str]:
    """Lines of the tables of the groups or configs that are named, of all where none is; each row once it is compiled.
    UserError: there is none, or no compiler of those that are named."""
    known, lacking = {*GROUPS, *(case.config for group in GROUPS.values() for case in group.cases)}, ""
    if others := set(words) - known:
        raise UserError(
            f"no group and no config here is named {', '.join(others)}: there are {', '.join(sorted(known))}"
        )
    found = False
    for name, group in GROUPS.items():
        above = ""
        for case in group.cases:
            if words and not {name, case.config} & set(words):
                continue
            try:
                topology = topologies.load(case.topology)
            except UserError as error:  # its compiler is not installed
                lacking = str(error)
                continue
            versions = report.versions(topology.chip)
            if versions != above:
                flags = shlex.join(f"--config.{setting}" for setting in group.settings)
                yield f"\n{versions}, {datetime.date.today().isoformat()}; with `{flags}`:\n"
                yield from map(_line, (HEADER, ["---"] * 3 + ["---:"] * (len(HEADER) - 3)))
            above, found = versions, True
            yield _line(row(case, compiling.compile_step(config_of(case, group.settings), topology)))
            jax.clear_caches()
    if not found:
        raise UserError(lacking)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    topologies.prepare()
    try:
        for line in tables(sys.argv[1:]):
            print(line, flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
