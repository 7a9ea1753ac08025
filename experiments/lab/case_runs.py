"""Experiments of `cases` that measure quality: every case with every seed, as runs of a sweep, with its statistics.

Such a file has, beside `cases()`: `config(**arguments)`, the `Config` that a case stands for; `measure_case(seed=...,
**arguments)`, which gives {"metrics": {"test/name": value}, "parameters": n} and whatever else of `single.Run.run` it
has; REFERENCE, the case that the others are compared with; PRIMARY, the metric of the answer; and MATTERS, the smallest
difference in it that matters.
"""

import dataclasses
import json
import time
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from experiments.lab.provenance import provenance
from experiments.lab.questions import Question, build, load
from experiments.lab.single import Run, check_finite
from transformer.config import Config, differences, to_dict


@dataclasses.dataclass(frozen=True)
class CaseRun(Run):
    """One case with one seed."""

    @property
    def arguments(self) -> str:
        """Those of the case, which its config need not tell."""
        return json.dumps([self.variant, load(self.experiment).cases()[self.variant]], sort_keys=True, default=str)

    def _run(self) -> dict[str, Any]:
        module, began = load(self.experiment), time.monotonic()
        found = module.measure_case(**module.cases()[self.variant], seed=self.seed)
        check_finite(found["metrics"])
        return {
            "variant": self.variant,
            "seed": self.seed,
            "notes": [],
            "parameters": None,
            **found,
            "seconds_per_step": None,
            "train_seconds": time.monotonic() - began,
            "resumed": False,
            "difference": self.difference,
            "config": to_dict(self.config),
            "fingerprint": None,
            **provenance(),
        }


def has_seeds(module: ModuleType) -> bool:
    """Whether an experiment of cases is one of these."""
    return all(hasattr(module, part) for part in ("REFERENCE", "PRIMARY", "MATTERS"))


def asked(module: ModuleType) -> Question:
    """The question of such an experiment. UserError: REFERENCE is no case, or a case's name is no folder's."""
    of = {name: module.config(**arguments) for name, arguments in module.cases().items()}
    base = of.get(module.REFERENCE, Config())
    changed = {name: {key: new for key, (_, new) in differences(base, own).items()} for name, own in of.items()}
    configs = build(cast(Any, SimpleNamespace(variants=lambda base: changed, REFERENCE=module.REFERENCE)), base)
    metrics = getattr(module, "MAIN_METRICS", [module.PRIMARY])
    return Question(
        base,
        f"case {module.REFERENCE}",
        {},
        changed,
        configs,
        module.REFERENCE,
        module.PRIMARY,
        module.MATTERS,
        metrics,
    )
