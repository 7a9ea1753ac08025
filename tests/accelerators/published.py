"""Training steps of the published sizes, compiled for accelerators: CASES, and what of each is recorded.

    python -m tests.accelerators.published              # compiles all cases, and writes published.json anew
    python -m tests.accelerators.published tpu gpt2     # those of a platform, whose names have each of these words

A platform's compiler is the extra `tpu` or `gpu`; `make records` does both. It is for changes that are meant to change
a figure: the difference of published.json shows what they have changed.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from transformer.accelerators import compiling, report, topologies
from transformer.accelerators.roofline import utilisation
from transformer.accelerators.sheets import peak
from transformer.config import Config, load_file, override, parse_pattern
from transformer.describe import on_mesh, shapes
from transformer.errors import UserError
from transformer.model.attention.kernels import block
from transformer.model.masks import band
from transformer.platforms import compiling_for
from transformer.training.flops import step_flops

CONFIGS = Path(__file__).parents[2] / "configs"
RECORDS = Path(__file__).with_suffix(".json")
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A config of configs/ on a mesh, in bfloat16; `changes` are keys of the config."""

    config: str
    topology: str
    mesh: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    title: str = ""  # what tells it from other cases of the config on the topology

    @property
    def name(self) -> str:
        return f"{self.config}{self.title and f', {self.title}'} on {self.topology}"

    @property
    def platform(self) -> str:
        return "gpu" if self.topology.startswith("h100") else "tpu"

    @property
    def full_config(self) -> Config:
        config = load_file(CONFIGS / f"{self.config}.py")
        return on_mesh(override(config, {"model.dtype": "bfloat16"} | self.changes), self.mesh)[0]


def _window(length: int, topology: str) -> Case:
    """GPT-2 124M with a window of 128 and one row of this length; layers but attention are computed again."""
    changes = {"model.attention": ("window:128",), "model.max_positions": length, "data.row_multiple": 1}
    changes |= {"model.remat": "attention", "model.scan_layers": True}
    changes |= {"data.max_len": length, "data.buckets": (length,), "data.batch_tokens": length}
    return Case("gpt2_124m", topology, "data=1", changes, f"window 128 at {length:,}")


# For TPUs, whose compiler takes a minute for twelve layers one by one, layers are scanned.
_SCANNED = {"model.scan_layers": True}
LENGTHS = (16_384, 65_536)  # of windows
CASES = {
    case.name: case
    for case in (  # what takes longest is first
        Case("gpt2_xl", "v5e:16x16", "data=16,fsdp=16"),
        _window(LENGTHS[1], "v6e:1x1"),
        Case("gpt2_124m", "v5e:4x4", "data=4,fsdp=4", _SCANNED | {"model.remat": "dots"}),
        Case("t5_small", "v5e:4x4", "data=16", _SCANNED),
        Case("bert_base", "v5e:4x4", "data=16", _SCANNED),
        Case("vit_b16", "v5e:4x4", "data=16", _SCANNED | {"mesh.accumulate": 4}),
        Case("paper_big", "v5e:4x4", "data=4,fsdp=4", _SCANNED),
        Case("paper_base", "v5e:2x4", "data=8", _SCANNED),
        _window(LENGTHS[0], "v6e:1x1"),
        Case("llama", "v5e:2x2", "data=4"),
        Case("vit_b16", "h100:1x1x8", "data=8", {"mesh.accumulate": 2}),
        Case("bert_base", "h100:1x1x8", "data=8"),
        Case("paper_big", "h100:1x1x8", "data=8"),
        Case("paper_base", "h100:1x1x8", "data=8"),
        Case("t5_small", "h100:1x1x8", "data=8"),
        Case("gpt2_xl", "h100:1x1x8", "fsdp=8"),
        Case("gpt2_124m", "h100:1x1x8", "fsdp=8", {"mesh.accumulate": 2}),
        Case("gpt2_124m", "h100:1x1x1", "data=1", {"mesh.accumulate": 16}),
        _window(LENGTHS[1], "h100:1x1x1"),
        _window(LENGTHS[0], "h100:1x1x1"),
        Case("llama", "h100:1x1x8", "data=8"),
    )
}


def figures(case: Case) -> Figures:
    """What is recorded of a case. Amounts, of one device and step: bytes `held` and of `work`, bytes `sent` by kind of
    collective, `milliseconds` that the roofline says a step takes at least, and the bound of `mfu`, where the model's
    FLOPs have a formula. Counts: `kernels` and their calls, `loops` as "times x trips", and `branches`."""
    step = compiling.compile_step(case.full_config, case.topology)
    program, sent = step.program, Counter[str]()
    for one in program.collectives:
        sent[one.kind] += round(one.sent_bytes)
    found: Figures = {
        "compiler": report.versions(step.topology.chip),
        "held": step.memory.held,
        "work": step.memory.work,
        "sent": dict(sorted(sent.items())),
        "milliseconds": round(1e3 * step.bound.seconds, 3),
        "mfu": _mfu(step),
        "kernels": dict(sorted(program.kernels.items())),
        "loops": sorted(f"{loop.times} x {loop.trips}" for loop in program.loops),
        "branches": program.branches,
    }
    return found | ({"scores": _scores(step)} if "window" in case.title else {})


def _mfu(step: compiling.Step) -> float | None:
    try:
        flops = step_flops(step.config, shapes(step.config), step.rows, step.length)
    except UserError:
        return None
    most = peak(step.topology.sheet, step.config.model.dtype)
    return round(utilisation(flops, step.bound.seconds, step.layout.mesh.size, most), 4)


def _scores(step: compiling.Step) -> dict[str, float]:
    """The scores that attention computes over those in the window's band, by pass. Of products in XLA from their FLOPs:
    two products forward (again where layers are computed again), five backward. The call of splash does not say which
    blocks it skips: those that it computes are counted in its tables."""
    from transformer.model.attention import splash

    model, length = step.config.model, step.length
    window = parse_pattern(model.attention[0])
    limits = band(causal=True, window=window)
    seen = int(np.minimum(np.arange(length) + 1, (window or 0) + 1).sum())
    if any("splash" in name for name in step.program.kernels):
        with compiling_for("tpu"):
            side = block(length, limits)
            tables = splash._kernel(length, length, limits, (side, side), model.num_heads, False)
        masks = {name: getattr(tables, f"{name}_mask_info").block_mask for name in ("fwd", "dkv", "dq")}
        return {name: round(int((mask[0] > 0).sum()) * side**2 / seen, 3) for name, mask in masks.items()}
    done: Counter[str] = Counter()
    for op in step.program.ops:
        if "self_attention.heads" in op.source:
            again = "rematted_computation" in op.source
            done["again" if again else "backward" if "transpose(" in op.source else "forward"] += op.flops * op.times
    of_band = step.rows * model.num_layers * model.d_model * 2 * seen
    return {name: round(flops / (of_band * (5 if name == "backward" else 2)), 3) for name, flops in done.items()}


def read_records() -> dict[str, Figures]:
    """Case -> its figures, as recorded."""
    return json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}


def write_record(name: str, found: Figures) -> None:
    """Replaces one record; those of cases that are no more are left out."""
    records = read_records() | {name: found}
    kept = {name: records[name] for name in sorted(CASES) if name in records}
    RECORDS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _figures_or_why(case: Case) -> Figures | str:
    try:
        return figures(case)
    except UserError as error:
        return str(error)


def main(words: list[str]) -> None:
    """Writes the records of the cases whose names or platforms have each of the words. Two are compiled at a time."""
    chosen = [case for case in CASES.values() if all(word in f"{case.name} {case.platform}" for word in words)]
    failed, spawn = [], multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, spawn, topologies.prepare) as pool:
        under_way = {pool.submit(_figures_or_why, case): case.name for case in chosen}
        for done in concurrent.futures.as_completed(under_way):
            name, found = under_way[done], done.result()
            print(name, found, flush=True)
            if isinstance(found, str):
                failed.append(name)
            else:
                write_record(name, found)
    if failed:
        sys.exit(f"not recorded: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
