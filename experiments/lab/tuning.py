"""Own values of a key for each variant, such as its learning rate.

A variant that is compared at the rate of another may lose for the rate alone. So each has the value with the lowest
validation loss, of seeds that no report uses, among values that are chosen for all variants alike.
"""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.lab.questions import literal
from experiments.lab.results import outcome
from experiments.lab.single import Run
from experiments.lab.sweep import Execute, check_runs, missing, train
from transformer.config import Config, check_key, flatten, is_runtime, override
from transformer.errors import UserError

RATE = "optimizer.learning_rate"
SEEDS = (1_000_000_000, 1_000_000_001)
FACTOR = 2.0  # between two values of a grid, which begins with three
EXTENSIONS = 6  # most values that a grid gets besides
WITHIN = 0.02  # of the best loss: values up to there are as good as the best, in "width"

Keys = dict[str, tuple[float, float] | None]  # key -> its range, where one is given
Values = tuple[float, ...]  # of the keys, in their order
Means = dict[Values, float]  # values -> mean validation loss, infinite where a run diverged
Proposer = Callable[[Means], list[Values]]  # what a variant tries next; nothing: it is done


def keys_of(
    module: ModuleType,
    configs: dict[str, Config],
    variants: dict[str, dict[str, Any]],
    given: Sequence[str] | None,
    trials: int | None = None,
) -> Keys:
    """The keys to tune: those `given`, or the file's TUNE, or the rate where variants differ in the model.

    Args:
        module: the experiment.
        configs: variant -> its config.
        variants: variant -> the keys that it sets itself.
        given: each "KEY", "KEY=LOW..HIGH" or "none"; None: not given.
        trials: of Optuna; None: a grid, which has one key and no range.

    Raises:
        UserError: a key that cannot be tuned (no number above 0, one of how a run is run, or one that variants set), or
            more than a grid can do.
    """
    changed = {key for changes in variants.values() for key in changes}
    if given is None:
        models = any(key.startswith("model.") for key in changed) and RATE not in changed
        default = getattr(module, "TUNE", RATE if models else None)
        given = [default] if default else []
    found: Keys = {}
    for text in given:
        name, equals, ends = text.partition("=")
        if text == "none":
            continue
        values = [flatten(config)[check_key(name)] for config in configs.values()]
        real = all(isinstance(value, float) and value > 0 for value in values)
        if not real and not (name.startswith("optimizer.") and all(type(value) is int for value in values)):
            raise UserError(
                f"--tune {name} is {values[0]!r} here: name a key with a number above 0, or set one by --set"
            )
        if is_runtime(name) or name in changed:
            why = "says how a run is run" if is_runtime(name) else "is set by the variants themselves"
            raise UserError(f"--tune {name} {why}: name another key, or --tune none")
        found[name] = None
        if equals:
            low, _, high = map(literal, ends.partition(".."))
            if not all(isinstance(end, int | float) for end in (low, high)) or not 0 < low < high:
                raise UserError(f"--tune {text!r} has no range: write --tune {name}=LOW..HIGH, such as 1e-4..1e-2")
            found[name] = (low, high)
    if trials and not found:
        raise UserError(f"--trials {trials} has nothing to tune: name a key, such as --tune {RATE}")
    if not trials and (len(found) > 1 or any(found.values())):
        raise UserError(
            f"--tune {' and --tune '.join(given)} is more than a grid can do: add --trials N, or name one key"
        )
    return found


def grid(center: float, tried: Means) -> list[Values]:
    """The values that a grid adds: three at first, then one beyond the edge where the best value lies.

    ValueError: it has all its extensions, and the best is at its edge still.
    """
    values = sorted(value for (value,) in tried)
    whole = (lambda value: max(1, round(value))) if isinstance(center, int) else float
    if not values:
        return [(value,) for value in sorted({whole(center / FACTOR), whole(center), whole(center * FACTOR)})]
    (best,) = best_of(tried, (center,))
    if values[0] < best < values[-1] and tried[best,] < math.inf:
        return []
    edge = whole(values[-1] * FACTOR) if best == values[-1] and tried[best,] < math.inf else whole(values[0] / FACTOR)
    if len(values) >= 3 + EXTENSIONS or edge in values:
        raise ValueError("the best is at the edge")
    return [(edge,)]


def best_of(means: Means, center: Values) -> Values:
    """The values of the lowest loss; of equal ones the nearest to the config's own."""

    def rank(values: Values) -> tuple[float, float]:
        return means[values], sum(abs(math.log(value / own)) for value, own in zip(values, center, strict=True))

    return min(means, key=rank)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The tuning of all variants of a sweep, in the folder `tuning` of its workdir."""

    experiment: str
    configs: dict[str, Config]
    variants: dict[str, dict[str, Any]]
    keys: Keys
    workdir: Path
    trials: int | None = None  # of Optuna, a variant; None: a grid

    @property
    def key(self) -> str:
        return ", ".join(self.keys)

    def proposers(self) -> dict[str, Proposer]:
        if self.trials:
            from experiments.lab.search import Search

            own = {variant: flatten(config) for variant, config in self.configs.items()}
            return {
                variant: Search({key: (flat[key], ends) for key, ends in self.keys.items()}, self.trials)
                for variant, flat in own.items()
            }
        return {variant: functools.partial(self._grid, variant) for variant in self.configs}

    def _grid(self, variant: str, tried: Means) -> list[Values]:
        try:
            return grid(flatten(self.configs[variant])[self.key], tried)
        except ValueError as error:
            told = ", ".join(
                f"{v:g}: {'diverged' if m == math.inf else f'{m:.4g}'}" for (v,), m in sorted(tried.items())
            )
            raise UserError(
                f"the grid of {self.key} never brackets the best value of {variant!r} ({told}): begin it nearer to "
                f"that with --set {self.key}=VALUE, or leave tuning out with --tune none"
            ) from error

    def changes(self, values: Values) -> dict[str, Any]:
        return dict(zip(self.keys, values, strict=True))

    def runs(self, asked: dict[str, list[Values]]) -> list[Run]:
        """The runs of these values, all variants of a seed before the next seed."""
        found = []
        for seed in SEEDS:
            for variant, points in asked.items():
                for values in points:
                    config = override(self.configs[variant], self.changes(values) | {"seed": seed})
                    folder = self._folder(variant, values, seed)
                    difference = self.variants[variant] | self.changes(values)
                    found.append(Run(self.experiment, variant, seed, config, difference, folder, trial=True))
        return found

    def _folder(self, variant: str, values: Values, seed: int) -> Path:
        return self.workdir / "tuning" / variant / ",".join(map(repr, values)) / f"seed{seed}"

    def settled(self, old: dict[str, Any], whatever: bool) -> dict[str, Any] | None:
        """The tuning of the sweep that has begun, `whatever` is asked for now; None: it has none. UserError: it was
        tuned otherwise."""
        kept = old.get("tuning")
        before, now = kept["key"] if kept else "none", self.key or "none"
        if before != now and not whatever:
            raise UserError(
                f"{str(self.workdir)!r} holds a sweep with --tune {before}, not --tune {now}: use the former, or "
                "choose another --workdir"
            )
        if kept and set(kept["chosen"]) != set(self.configs):
            raise UserError(f"{str(self.workdir)!r} was tuned for other variants than these: choose another --workdir")
        return kept

    def applied(self, tuned: dict[str, Any] | None) -> tuple[dict[str, Config], dict[str, dict[str, Any]]]:
        """The variants' configs, and the keys in which they differ, with what was chosen."""
        changes: dict[str, dict[str, Any]] = {variant: {} for variant in self.configs}
        for variant, value in (tuned["chosen"] if tuned else {}).items():
            changes[variant] = value if isinstance(value, dict) else {tuned["key"]: value}  # type: ignore[index]
        return (
            {variant: override(config, changes[variant]) for variant, config in self.configs.items()},
            {variant: own | changes[variant] for variant, own in self.variants.items()},
        )

    def first(self) -> list[Run]:
        """What is to be trained at least: a dry run counts it."""
        runs = self.runs({variant: propose({}) for variant, propose in self.proposers().items()})
        return runs * self.trials if self.trials else missing(runs)

    def choose(self, execute: Execute | None) -> dict[str, Any]:
        """Trains round by round, all variants at once, and chooses; `execute` None: nothing may be trained.

        Returns:
            What sweep.json keeps as "tuning": {"key", "seeds", "tried": variant -> [{"value", "losses", "mean",
            "diverged"}] by value, "chosen": variant -> value, "width": variant -> [low, high]}. A value of several keys
            is {key: value}, and they have no width.

        Raises:
            UserError: a run failed, or gave no validation loss; a grid never brackets the best.
            KeyboardInterrupt: it was stopped.
        """
        proposers, count = self.proposers(), 0
        tried: dict[str, dict[Values, list[float]]] = {variant: {} for variant in self.configs}
        while True:
            means = {variant: {v: statistics.fmean(own) for v, own in tried[variant].items()} for variant in tried}
            asked = {variant: found for variant, propose in proposers.items() if (found := propose(means[variant]))}
            if not asked:
                return self._chosen(tried)
            count += 1
            runs = self.runs(asked)
            for run in runs:
                check_runs([run.folder], run.variant, run.config)
            if missing(runs):
                if execute is None:
                    raise UserError(f"{str(self.workdir)!r} has not tuned {self.key} yet: leave out --report-only")
                train(runs, self.workdir, execute, what=f"tuning {self.key}, round {count}: ")
            losses = {run.folder: self._loss(run) for run in runs}
            for variant, points in asked.items():
                for values in points:
                    tried[variant][values] = [losses[self._folder(variant, values, seed)] for seed in SEEDS]

    def _loss(self, run: Run) -> float:
        result, error = outcome(run.folder)
        if run.diverged:
            return math.inf
        if result is None and error is None:
            raise KeyboardInterrupt("tuning was stopped: the same command goes on from there")
        if result is None:
            raise UserError(f"{run.name} failed ({error}): mend that for the same command to go on, or use --tune none")
        if result["validation"] is None:
            raise UserError(
                f"{self.experiment!r} gives no loss to tune {self.key} by: let its measure return one as 'validation', "
                "or use --tune none"
            )
        return result["validation"]

    def _chosen(self, tried: dict[str, dict[Values, list[float]]]) -> dict[str, Any]:
        rows: dict[str, list[dict[str, Any]]] = {}
        chosen, width = {}, {}
        for variant, own in tried.items():
            means = {values: statistics.fmean(losses) for values, losses in sorted(own.items())}
            flat = flatten(self.configs[variant])
            best = best_of(means, tuple(flat[key] for key in self.keys))
            if means[best] == math.inf:
                raise UserError(
                    f"all trials of {variant!r} diverged: give {self.key} a lower range, or use --tune none"
                )
            rows[variant] = [
                {
                    "value": self._told(values),
                    "losses": [loss if loss < math.inf else None for loss in own[values]],
                    "mean": mean if mean < math.inf else None,
                    "diverged": own[values].count(math.inf),
                }
                for values, mean in means.items()
            ]
            chosen[variant] = self._told(best)
            if len(self.keys) == 1:
                near = means[best] + WITHIN * abs(means[best])
                below = [values for values in means if values <= best][::-1]
                sides = [
                    list(itertools.takewhile(lambda values: means[values] <= near, side))  # noqa: B023
                    for side in (below, [values for values in means if values >= best])
                ]
                width[variant] = [side[-1][0] for side in sides]
        return {"key": self.key, "seeds": list(SEEDS), "tried": rows, "chosen": chosen, "width": width}

    def _told(self, values: Values) -> Any:
        return values[0] if len(values) == 1 else self.changes(values)
