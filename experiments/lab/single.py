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
from transformer.config import Config, override, to_dict
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

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"

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
        """Trains, restores and measures. An experiment may bring its own `train`, `restore` and `measure`."""
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
        if hasattr(module, "measure"):
            measured = module.measure(trained)
        else:
            from experiments.lab.measures import measure

            measured = measure(trained)
        for name, value in measured["metrics"].items():
            if value is not None and not math.isfinite(value):
                raise UserError(f"{name} is {value}: the run diverged, so lower optimizer.learning_rate")

        import jax

        from transformer.model.embedders import unused_parameters

        lines = read_lines(self.folder / "metrics.jsonl")
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
            "curve": [[line["step"], line["loss"]] for line in lines if "loss" in line],
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
