"""Experiments of `cases` that measure quality: every case with every seed, as runs of a sweep, with its statistics.

Such a file has, beside `cases()`: `config(**arguments)`, the `Config` that a case stands for; `measure_case(seed=...,
**arguments)`, which gives {"metrics": {"test/name": value}, "parameters": n} and whatever else of `single.Run.run` it
has; REFERENCE, the case that the others are compared with; PRIMARY, the metric of the answer; and MATTERS, the smallest
difference in it that matters.
"""

import dataclasses
import datetime
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from experiments.lab import report
from experiments.lab.provenance import provenance
from experiments.lab.questions import build, load
from experiments.lab.results import outcome
from experiments.lab.single import Run
from experiments.lab.sweep import STEPS, Execute, claim, planned, train
from transformer.config import Config, differences, to_dict
from transformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class CaseRun(Run):
    """One case with one seed."""

    def run(self) -> dict[str, Any]:
        module, began = load(self.experiment), time.monotonic()
        found = module.measure_case(**module.cases()[self.variant], seed=self.seed)
        return {
            "variant": self.variant,
            "seed": self.seed,
            "notes": [],
            **found,
            "seconds_per_step": None,
            "train_seconds": time.monotonic() - began,
            "resumed": False,
            "difference": self.difference,
            "config": to_dict(self.config),
            **provenance(),
        }


def has_seeds(module: ModuleType) -> bool:
    """Whether an experiment of cases is one of these."""
    return all(hasattr(module, part) for part in ("REFERENCE", "PRIMARY", "MATTERS"))


def sweep(
    module: ModuleType, experiment: str, seeds: Sequence[int], workdir: Path, command: str, execute: Execute | None
) -> int:
    """Runs what is missing, unless `execute` is None, prints the answer and writes the report; the exit code, as of
    `run.sweep`. UserError: REFERENCE is no case, a case's name is no folder's, or the workdir holds another sweep or
    nothing to report."""
    of = {name: module.config(**arguments) for name, arguments in module.cases().items()}
    base = of.get(module.REFERENCE, Config())
    changed = {name: {key: new for key, (_, new) in differences(base, own).items()} for name, own in of.items()}
    configs = build(cast(Any, SimpleNamespace(variants=lambda base: changed, REFERENCE=module.REFERENCE)), base)
    if execute is None and not any((workdir / "runs").glob("*/seed*")):
        raise UserError(f"nothing is measured yet in {str(workdir)!r}: run without --report-only")
    plan = {
        "experiment": Path(experiment).stem,
        "docstring": module.__doc__,
        "base": f"case {module.REFERENCE}",
        "settings": {},
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": to_dict(base),
        "budget": STEPS,
        "variants": changed,
        "reference": module.REFERENCE,
        "primary": module.PRIMARY,
        "matters": module.MATTERS,
        "main_metrics": getattr(module, "MAIN_METRICS", [module.PRIMARY]),
        "seeds": list(seeds),
    }
    plan = claim(workdir, plan, configs, base)
    runs = [CaseRun(**vars(run)) for run in planned(experiment, configs, changed, plan["seeds"], workdir)]
    if execute is not None:
        train(runs, [run for run in runs if outcome(run.folder)[0] is None], None, execute)
    said, failures = report.write(workdir)
    print(said)
    whole = execute is None or all(outcome(run.folder)[0] for run in runs)
    return int(failures > 0) or (0 if whole else os.EX_TEMPFAIL)
