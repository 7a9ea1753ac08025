"""What a sweep would do and cost, from a few timed steps of each variant; nothing of it is kept."""

import dataclasses
import json
import math
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import workers
from experiments.single import Run

STEPS = 40  # of a pilot run; the first lines of them compile
SEEDS = (101, 102)  # the second finds the programs that the first has compiled, as all but the first seed of a sweep do


@dataclasses.dataclass(frozen=True)
class Pilot:
    """A short run of one variant, trained and measured as a whole one is."""

    short: Run
    name: str

    @property
    def folder(self) -> Path:
        return self.short.folder

    def run(self) -> dict[str, Any]:
        result = self.short.run()
        steps = min(STEPS, self.short.config.steps)
        return {
            "variant": self.short.variant,
            "seed": self.short.seed,
            "parameters": result["parameters"],
            "seconds_per_step": result["seconds_per_step"],
            "around": result["train_seconds"] - steps * result["seconds_per_step"],  # data, compiling, validation
            "measure_seconds": result["measure_seconds"],
            "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }


@dataclasses.dataclass(frozen=True)
class Expected:
    """One variant of the plan."""

    variant: str
    difference: dict[str, Any]
    parameters: int
    flops: float  # of the training of one run: 6 a parameter and position (Kaplan et al. 2020), attention left out
    seconds: float  # of all its seeds
    bytes: int  # most memory of a process


class _Quiet:
    """Says what failed, and nothing else."""

    def finished(self, task: Any, result: dict[str, Any]) -> None: ...

    def failed(self, task: Any, reason: str) -> None:
        print(f"{task.name}: FAILED: {reason}", file=sys.stderr)

    def tick(self, running: Sequence[Any]) -> None: ...


def expect(runs: Sequence[Run], jobs: int) -> list[Expected]:
    """What `runs` would cost: each variant is piloted twice, `jobs` at a time as the runs would be."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    with tempfile.TemporaryDirectory() as folder:
        pilots = [
            Pilot(_short(own[0], seed, Path(folder) / variant / str(seed)), f"pilot of {variant}")
            for seed in SEEDS
            for variant, own in by_variant.items()
        ]
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for group in (pilots[: len(by_variant)], pilots[len(by_variant) :]):  # all firsts before the seconds
            workers.run_all(group, jobs, _Quiet())
        for pilot in pilots:
            path = pilot.folder / "result.json"
            if path.exists():
                found[pilot.short.variant, pilot.short.seed] = json.loads(path.read_text(encoding="utf-8"))
    return [
        _expected(own, *(found[variant, seed] for seed in SEEDS))
        for variant, own in by_variant.items()
        if all((variant, seed) in found for seed in SEEDS)
    ]


def _short(run: Run, seed: int, folder: Path) -> Run:
    steps = min(STEPS, run.config.steps)
    logging = dataclasses.replace(
        run.config.logging, log_every=max(1, steps // 4), evaluate_every=0, checkpoint_every=steps
    )
    config = dataclasses.replace(run.config, steps=steps, seed=seed, logging=logging)
    return dataclasses.replace(run, seed=seed, config=config, folder=folder)


def _expected(own: Sequence[Run], cold: dict[str, Any], warm: dict[str, Any]) -> Expected:
    config = own[0].config
    each = config.steps * warm["seconds_per_step"] + warm["measure_seconds"]
    seconds = cold["around"] + (len(own) - 1) * warm["around"] + len(own) * each
    flops = 6.0 * warm["parameters"] * config.data.batch_tokens * config.steps
    memory = max(cold["bytes"], warm["bytes"])
    return Expected(own[0].variant, own[0].difference, warm["parameters"], flops, seconds, memory)


def table(expected: Sequence[Expected], runs: int, jobs: int) -> str:
    """The plan as people read it."""
    width = max([len(row.variant) for row in expected] + [len("variant")])
    lines = [f"{'variant':{width}}  {'parameters':>12}  {'GFLOP a run':>12}  {'minutes':>8}  {'MiB':>6}  differs in"]
    for row in expected:
        differs = ", ".join(f"{key}={value}" for key, value in row.difference.items()) or "nothing"
        lines.append(
            f"{row.variant:{width}}  {row.parameters:12,}  {row.flops / 1e9:12,.0f}  {row.seconds / 60:8.1f}  "
            f"{row.bytes / 2**20:6,.0f}  {differs}"
        )
    longest = max((row.seconds for row in expected), default=0.0)
    wall = max(sum(row.seconds for row in expected) / jobs, longest / math.ceil(runs / max(len(expected), 1)))
    lines.append(f"{runs} runs, {jobs} at a time: about {wall / 60:.1f} minutes; memory is that of one process")
    return "\n".join(lines)
