"""What a sweep would do and cost, and what a step of each variant takes, from short runs; nothing of them is kept."""

import contextlib
import dataclasses
import math
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.lab.questions import load
from experiments.lab.results import outcome, read_lines
from experiments.lab.single import Run
from transformer.errors import UserError

STEPS = 40  # of a pilot run; the first lines of them compile
SEEDS = (101, 102)  # the second finds the programs that the first has compiled, as all but the first seed of a sweep do

# A budget of seconds stands and falls with the times of the steps: of so many steps, in lines of ten, the median line;
# of so many runs of a variant, among which the order of the variants rotates, the median run. One pilot alone was up to
# 1.7 times too slow.
TIMED, LINE, ROUNDS = 160, 10, 3


@dataclasses.dataclass(frozen=True)
class Pilot:
    """A short run of one variant, trained and measured as a whole one is."""

    short: Run
    validates: bool  # the whole run evaluates while it trains
    name: str

    @property
    def folder(self) -> Path:
        return self.short.folder

    def run(self) -> dict[str, Any]:
        result = self.short.run()
        steps = self.short.config.steps
        return {
            "variant": self.short.variant,
            "seed": self.short.seed,
            "parameters": result["parameters"],
            "flops": result["flops"] / steps,
            "seconds_per_step": result["seconds_per_step"],
            "around": result["train_seconds"] - steps * result["seconds_per_step"],  # data, compiling, last validation
            "compiling": self._loop_seconds() - steps * result["seconds_per_step"],  # the training step, of it
            "validation_seconds": self._validation() if self.validates else 0.0,
            "measure_seconds": result["measure_seconds"],
            "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }

    def _loop_seconds(self) -> float:
        """Seconds of all steps, those that compiled included."""
        lines = [line for line in read_lines(self.folder / "metrics.jsonl") if "seconds_per_step" in line]
        ends = [0, *(line["step"] for line in lines)]
        return sum(
            (end - start) * line["seconds_per_step"] for (start, end), line in zip(pairwise(ends), lines, strict=True)
        )

    def _validation(self) -> float:
        """Seconds of one evaluation amid training, without compiling; none of an experiment's own training."""
        if hasattr(load(self.short.experiment), "restore"):
            return 0.0
        from transformer import load_run
        from transformer.evaluation.splits import loss_metrics

        run = load_run(self.folder, plugins=self.short.config.plugins)
        times = []
        for _ in range(2):  # the first compiles
            began = time.monotonic()
            try:
                loss_metrics(run, "validation")
            except UserError:  # sequences longer than its position table, which training leaves out
                return 0.0
            times.append(time.monotonic() - began)
        return min(times)


@dataclasses.dataclass(frozen=True)
class Timing:
    """A short run of one variant for the time of its steps only."""

    short: Run
    name: str

    @property
    def folder(self) -> Path:
        return self.short.folder

    def run(self) -> dict[str, Any]:
        self.short.train()
        return {"seconds_per_step": self.short.seconds_per_step()}


@dataclasses.dataclass(frozen=True)
class Expected:
    """One variant of the plan."""

    variant: str
    difference: dict[str, Any]
    steps: int
    parameters: int
    flops: float  # of the training of one run, by `budgets.step_flops`
    seconds: float  # of all its seeds
    bytes: int  # most memory of a process


class _Quiet:
    """Says what failed, and nothing else."""

    def finished(self, task: Any, result: dict[str, Any]) -> None: ...

    def stopped(self, task: Any, reason: str) -> None:
        print(f"{task.name}: {reason}", file=sys.stderr)

    def failed(self, task: Any, reason: str) -> None:
        print(f"{task.name}: FAILED: {reason}", file=sys.stderr)

    def tick(self, running: Sequence[Any]) -> None: ...


Pilots = dict[str, tuple[dict[str, Any], dict[str, Any]]]  # variant -> what its first and its second pilot measured


def pilot(runs: Sequence[Run], execute: Callable[[Sequence[Any], Any], None], folder: Path) -> Pilots:
    """Pilots each variant twice, as the runs would be: `execute` does tasks. What fails is said, and left out."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.variant, run)
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in first}
    rate = random.uniform(0.99, 1.0)  # a schedule that no earlier pilot had: else its program were compiled already
    with _place(folder) as place:
        for seed in SEEDS:  # all firsts before the seconds
            tasks = [
                Pilot(
                    _short(run, seed, STEPS, STEPS // 4, place / run.variant / str(seed), rate),
                    bool(run.config.logging.evaluate_every),
                    f"pilot of {run.variant}",
                )
                for run in first.values()
            ]
            execute(tasks, _Quiet())
            for task in tasks:
                result, _ = outcome(task.folder, ("seconds_per_step",))
                if result is not None:
                    found[task.short.variant].append(result)
    return {variant: (own[0], own[1]) for variant, own in found.items() if len(own) == len(SEEDS)}


def step_seconds(runs: Sequence[Run], execute: Callable[[Sequence[Any], Any], None], folder: Path) -> dict[str, float]:
    """Seconds a step of each of the runs' variants, all on the same batches. What fails is said, and left out."""
    times: dict[str, list[float]] = {run.variant: [] for run in runs}
    left = list(runs)
    with _place(folder) as place:
        for turn in range(ROUNDS):
            tasks = []
            for run in left:
                steps = min(TIMED, max(4 * LINE, run.config.steps // 4))
                short = _short(run, SEEDS[0], steps, LINE, place / run.variant / str(turn))
                tasks.append(Timing(short, f"timing of {run.variant}"))
            execute(tasks, _Quiet())
            for task in tasks:
                result, _ = outcome(task.folder, ("seconds_per_step",))
                if result is not None and result["seconds_per_step"] is not None:
                    times[task.short.variant].append(result["seconds_per_step"])
            left = [run for run in left if len(times[run.variant]) == turn + 1]
            left = [*left[1:], *left[:1]]  # another one is the last, which may have nobody beside it
    return {run.variant: statistics.median(times[run.variant]) for run in left}


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="pilots-") as place:
        yield Path(place)


def _short(run: Run, seed: int, steps: int, log_every: int, folder: Path, rate: float = 1.0) -> Run:
    """The run with fewer steps; `rate` times its learning rate."""
    steps = min(steps, run.config.steps)
    logging = dataclasses.replace(
        run.config.logging,
        log_every=max(1, min(log_every, steps // 4)),
        evaluate_every=0,
        checkpoint_every=steps,
    )
    optimizer = dataclasses.replace(run.config.optimizer, learning_rate=rate * run.config.optimizer.learning_rate)
    config = dataclasses.replace(run.config, steps=steps, seed=seed, optimizer=optimizer, logging=logging)
    return dataclasses.replace(run, seed=seed, config=config, folder=folder)


def expect(runs: Sequence[Run], pilots: Pilots) -> list[Expected]:
    """What the runs would cost, of each variant that was piloted."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    return [_expected(own, *pilots[variant]) for variant, own in by_variant.items() if variant in pilots]


def _expected(own: Sequence[Run], cold: dict[str, Any], warm: dict[str, Any]) -> Expected:
    config = own[0].config
    every = config.logging.evaluate_every
    validations = (config.steps - 1) // every if every else 0  # the last one is around the steps already
    each = config.steps * warm["seconds_per_step"] + warm["measure_seconds"] + validations * warm["validation_seconds"]
    # Of what the first pilot compiled, the whole runs find all but the training step, which holds their own schedule.
    compiling = max(0.0, cold["compiling"] - warm["compiling"])
    seconds = compiling + len(own) * (warm["around"] + each)
    flops = config.steps * warm["flops"]
    memory = max(cold["bytes"], warm["bytes"])
    return Expected(own[0].variant, own[0].difference, config.steps, warm["parameters"], flops, seconds, memory)


def table(expected: Sequence[Expected], runs: int, jobs: int) -> str:
    """The plan as people read it."""
    width = max([len(row.variant) for row in expected] + [len("variant")])
    header = f"{'variant':{width}}  {'steps':>7}  {'parameters':>12}  {'GFLOP a run':>12}  {'minutes':>8}  {'MiB':>6}"
    lines = [f"{header}  differs in"]
    for row in expected:
        differs = ", ".join(f"{key}={value}" for key, value in row.difference.items()) or "nothing"
        lines.append(
            f"{row.variant:{width}}  {row.steps:7,}  {row.parameters:12,}  {row.flops / 1e9:12,.0f}  "
            f"{row.seconds / 60:8.1f}  {row.bytes / 2**20:6,.0f}  {differs}"
        )
    longest = max((row.seconds for row in expected), default=0.0)
    wall = max(sum(row.seconds for row in expected) / jobs, longest / math.ceil(runs / max(len(expected), 1)))
    lines.append(f"{runs} runs, {jobs} at a time: about {wall / 60:.1f} minutes; memory is that of one process")
    return "\n".join(lines)
