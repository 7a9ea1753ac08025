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

from experiments.lab.budgets import step_bytes
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

    @property
    def name(self) -> str:
        return f"pilot of {self.short.variant}"

    @property
    def folder(self) -> Path:
        return self.short.folder

    def run(self) -> dict[str, Any]:
        result, steps = self.short.run(), self.short.config.steps
        lines = [line for line in read_lines(self.folder / "metrics.jsonl") if "seconds_per_step" in line]
        ends = pairwise([0, *(line["step"] for line in lines)])
        loop = sum((end - start) * line["seconds_per_step"] for (start, end), line in zip(ends, lines, strict=True))
        own = steps * result["seconds_per_step"]
        return {name: result[name] for name in ("variant", "parameters", "seconds_per_step", "measure_seconds")} | {
            "flops": result["flops"] / steps,
            "around": result["train_seconds"] - own,  # data, compiling, last validation
            "compiling": loop - own,  # the training step, of it
            "validation_seconds": self._validation() if self.validates else 0.0,
            "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }

    def _validation(self) -> float:
        """Seconds of one evaluation amid training, without compiling; none of an experiment's own training."""
        if hasattr(load(self.short.experiment), "restore"):
            return 0.0
        from transformer import load_run
        from transformer.evaluation.splits import loss_metrics

        run, times = load_run(self.folder, plugins=self.short.config.plugins), []
        for _ in range(2):  # the first compiles
            began = time.monotonic()
            try:
                loss_metrics(run, "validation")
            except UserError:  # sequences longer than its position table, which training leaves out
                return 0.0
            times.append(time.monotonic() - began)
        return min(times)


@dataclasses.dataclass(frozen=True)
class Price:
    """What a step of one variant costs, in seconds or bytes: of a short run, or of its data."""

    short: Run
    budget: str

    @property
    def name(self) -> str:
        return f"{self.budget} of {self.short.variant}"

    @property
    def folder(self) -> Path:
        return self.short.folder

    def run(self) -> dict[str, Any]:
        if self.budget == "bytes":
            return {"price": step_bytes(self.short.config)}
        self.short.train()
        return {"price": self.short.seconds_per_step()}


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
    """A watcher that says what failed, and nothing else."""

    def finished(self, task: Any, result: dict[str, Any]) -> None: ...

    def stopped(self, task: Any, reason: str) -> None:
        print(f"{task.name}: {reason}", file=sys.stderr)

    def failed(self, task: Any, reason: str) -> None:
        print(f"{task.name}: FAILED: {reason}", file=sys.stderr)

    def tick(self, running: Sequence[Any]) -> None: ...


Execute = Callable[[Sequence[Any], Any], None]  # does tasks, and tells a watcher
Pilots = dict[str, tuple[dict[str, Any], dict[str, Any]]]  # variant -> what its first and its second pilot measured


def pilot(runs: Sequence[Run], execute: Execute, folder: Path) -> Pilots:
    """Pilots each variant twice, as the runs would be. What fails is said, and left out."""
    first = {run.variant: run for run in reversed(runs)}
    found: dict[str, list[dict[str, Any]]] = {run.variant: [] for run in runs}
    rate = random.uniform(0.99, 1.0)  # a schedule that no earlier pilot had: else its program were compiled already
    with _place(folder) as place:
        for seed in SEEDS:  # all firsts before the seconds
            tasks = [
                Pilot(
                    _short(first[variant], seed, STEPS, STEPS // 4, place / variant / str(seed), rate),
                    bool(first[variant].config.logging.evaluate_every),
                )
                for variant in found
            ]
            for variant, result in _results(tasks, execute):
                found[variant].append(result)
    return {variant: (own[0], own[1]) for variant, own in found.items() if len(own) == len(SEEDS)}


def step_prices(runs: Sequence[Run], execute: Execute, folder: Path, budget: str) -> dict[str, float]:
    """Seconds or bytes a step of each of the runs' variants, times of the same batches. What fails is said, and left
    out."""
    prices: dict[str, list[float]] = {run.variant: [] for run in runs}
    left = list(runs)
    with _place(folder) as place:
        for turn in range(ROUNDS if budget == "seconds" else 1):
            tasks = []
            for run in left:
                steps = min(TIMED, max(4 * LINE, run.config.steps // 4))
                tasks.append(Price(_short(run, SEEDS[0], steps, LINE, place / run.variant / str(turn)), budget))
            found = dict(_results(tasks, execute))
            left = [run for run in left if found.get(run.variant, {}).get("price") is not None]
            for run in left:
                prices[run.variant].append(found[run.variant]["price"])
            left = [*left[1:], *left[:1]]  # another one is the last, which may have nobody beside it
    return {run.variant: statistics.median(prices[run.variant]) for run in left}


def _results(tasks: Sequence[Any], execute: Execute) -> Iterator[tuple[str, dict[str, Any]]]:
    """(variant, result) of the tasks that did not fail."""
    execute(tasks, _Quiet())
    for task in tasks:
        result, _ = outcome(task.folder, ())
        if result is not None:
            yield task.short.variant, result


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
    return dataclasses.replace(run, seed=seed, config=config, folder=folder, trial=False, candidates=())


def expect(runs: Sequence[Run], pilots: Pilots) -> list[Expected]:
    """What the runs would cost, of each variant that was piloted."""
    found = []
    for variant, (cold, warm) in pilots.items():
        own = [run for run in runs if run.variant == variant]
        config, every = own[0].config, own[0].config.logging.evaluate_every
        amid = (
            (config.steps - 1) // every * warm["validation_seconds"] if every else 0.0
        )  # the last is around the steps
        each = warm["around"] + config.steps * warm["seconds_per_step"] + warm["measure_seconds"] + amid
        # Of what the first pilot compiled, the whole runs find all but the training step, with their own schedule.
        seconds = max(0.0, cold["compiling"] - warm["compiling"]) + len(own) * each
        flops, memory = config.steps * warm["flops"], max(cold["bytes"], warm["bytes"])
        found.append(Expected(variant, own[0].difference, config.steps, warm["parameters"], flops, seconds, memory))
    return found


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
    wall = max(sum(row.seconds for row in expected) / jobs, longest / max(1, math.ceil(runs / max(len(expected), 1))))
    lines.append(f"{runs} runs, {jobs} at a time: about {wall / 60:.1f} minutes; memory is that of one process")
    return "\n".join(lines)
