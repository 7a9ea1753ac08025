"""One run of a sweep, and one measurement of cost: what a worker does."""

import dataclasses
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from experiments.lab.budgets import step_flops
from experiments.lab.provenance import provenance
from experiments.lab.questions import load
from experiments.lab.results import read_lines
from experiments.lab.shared import code, identity, key, take
from experiments.lab.workers import one_line, write_json
from transformer.config import Config, from_stored, override, to_dict
from transformer.errors import UserError
from transformer.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    experiment: str
    variant: str
    seed: int
    config: Config
    difference: dict[str, Any]
    folder: Path
    trial: bool = False  # of a tuning, in a folder of its value: only the validation loss is wanted
    candidates: tuple[Path, ...] = ()  # folders of runs that may be this one: `shared.offered`

    @property
    def name(self) -> str:
        at = f" at {self.folder.parent.name}" if self.trial else ""
        return f"{self.variant}{at} seed {self.seed}"

    @property
    def arguments(self) -> str:
        """What makes the run, besides its config."""
        return ""

    def known_by(self) -> dict[str, str]:
        """The key and the code of the run, taken before it begins. Code that changed while it was stopped is told, and
        is that of no other run."""
        path, now = self.folder / "code.txt", code()
        goes_on = path.exists() and (self.folder / "metrics.jsonl").exists()  # else nothing was trained yet
        began = path.read_text(encoding="utf-8") if goes_on else now
        path.write_text(began, encoding="utf-8")
        return {"key": key(self), "code": now if began == now else f"{began} and {now}"}

    @property
    def diverged(self) -> bool:
        """Whether it was seen to diverge, which it would again: its failure.json says so, of the same config."""
        try:
            failure = json.loads((self.folder / "failure.json").read_text(encoding="utf-8"))
            return failure["kind"] == "diverged" and identity(from_stored(failure["config"])) == identity(self.config)
        except (OSError, ValueError, KeyError, UserError):  # there is none, or it is damaged
            return False

    def train(self) -> None:
        """Trains, or goes on with it."""
        module = load(self.experiment)
        if hasattr(module, "train"):
            module.train(self.config, self.folder)
        else:
            from transformer.train import train

            train(self.config, self.folder)

    def seconds_per_step(self) -> float | None:
        """The median over the lines of metrics.jsonl; None where there is only the first, which compiles."""
        lines = read_lines(self.folder / "metrics.jsonl")
        times = [line["seconds_per_step"] for line in lines if "seconds_per_step" in line][1:]
        return statistics.median(times) if times else None

    def run(self) -> dict[str, Any]:
        """Trains, restores and measures, or takes the result of a run that is the same (`shared`). An experiment may
        bring its own `train`, `restore` and `measure`. A run that diverges leaves failure.json: {"kind": "diverged",
        "reason", "step", "config"}."""
        from transformer.training.meter import Diverged

        (self.folder / "failure.json").unlink(missing_ok=True)
        if (found := take(self)) is not None:
            return found | {"config": to_dict(self.config)}
        known = self.known_by()
        try:
            return self._run() | known
        except (UserError, Diverged) as error:
            diverged = error if isinstance(error, Diverged) else error.__cause__
            if isinstance(diverged, Diverged):
                failure = {"kind": "diverged", "reason": one_line(error), "step": diverged.step}
                write_json(self.folder / "failure.json", failure | {"config": to_dict(self.config)})
            raise

    def _run(self) -> dict[str, Any]:
        module = load(self.experiment)
        resumed = (self.folder / "metrics.jsonl").exists()
        began = time.monotonic()
        self.train()
        trained_after = time.monotonic() - began
        if hasattr(module, "restore"):
            trained = module.restore(self.folder)
        else:
            from transformer import load_run

            trained = load_run(self.folder, plugins=self.config.plugins)
        lines = read_lines(self.folder / "metrics.jsonl")
        curves = {
            name: [[line["step"], line[name]] for line in lines if line.get(name) is not None]
            for name in ("loss", "validation_loss")
        }
        measured = self._measured(module, trained, curves["validation_loss"])
        check_finite({**measured["metrics"], "the validation loss": measured["validation"]}, self.config.steps)

        import jax

        from transformer.model.embedders import unused_parameters

        data = self.folder / "data.json"
        leaves, _ = jax.tree_util.tree_flatten_with_path(trained.params["params"])
        known = self.config
        if (tokenizer := getattr(trained, "tokenizer", None)) is not None:
            known = override(known, {"model.vocab_size": tokenizer.vocab_size})
        shapes = {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}
        model = self.config.model if self.config.model.vocab_size else known.model
        return {
            "variant": self.variant,
            "seed": self.seed,
            **measured,
            "curve": curves["loss"],
            "validation_curve": curves["validation_loss"],
            "skipped": sum(line.get("skipped", 0) for line in lines),  # updates
            "flops": self.config.steps * step_flops(known, shapes),  # of the training
            "parameters": sum(map(math.prod, shapes.values())) - unused_parameters(model, shapes),
            "seconds_per_step": self.seconds_per_step(),
            "train_seconds": trained_after,
            "measure_seconds": time.monotonic() - began - trained_after,
            "resumed": resumed,
            "difference": self.difference,
            "config": to_dict(self.config),
            "fingerprint": json.loads(data.read_text()).get("fingerprint") if data.exists() else None,
            **provenance(),
        }

    def _measured(self, module: Any, trained: Any, curve: list[list[float]]) -> dict[str, Any]:
        """What is measured, with the loss on the validation split as "validation": None where there is none. Of a trial
        that is all, so it goes without the question's `measure`, unless `restore` is the question's own too."""
        measured: dict[str, Any] = {"metrics": {}, "notes": []}
        if hasattr(module, "measure") and (hasattr(module, "restore") or not self.trial):
            measured = module.measure(trained)
        elif not self.trial:
            from experiments.lab.measures import measure

            measured = measure(trained)
        if "validation" not in measured:
            measured |= {"validation": _validation(trained, curve)}
        return measured | {"metrics": {"validation/loss": measured["validation"]}} if self.trial else measured


def check_finite(metrics: dict[str, float | None], step: int = 0) -> None:
    """UserError, of `Diverged`: one of the metrics is no finite number."""
    from transformer.training.meter import Diverged

    for name, value in metrics.items():
        if value is not None and not math.isfinite(value):
            why = f"{name} is {value}: the run diverged, so lower optimizer.learning_rate"
            raise UserError(why) from Diverged(why, step)


def _validation(trained: Any, curve: list[list[float]]) -> float | None:
    from transformer.evaluation.splits import loss_metrics
    from transformer.tasks.trained import Trained

    if not isinstance(trained, Trained):  # an experiment's own
        return None
    try:
        return loss_metrics(trained, "validation")["loss"].total
    except UserError:  # sequences longer than its position table, which training leaves out
        return curve[-1][1] if curve else None


@dataclasses.dataclass(frozen=True)
class Cost:
    """The experiment's own measurement of cost, in a worker with all cores, after the runs."""

    experiment: str
    base: Config
    folder: Path
    name: str = "the cost measurement"

    def run(self) -> dict[str, Any]:
        load_plugins(self.base.plugins)
        return {"rows": load(self.experiment).cost(self.base), **provenance()}
