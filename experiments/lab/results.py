"""What a sweep has written, read back: runs, comparisons over seeds, and the tables as CSV."""

import csv
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.statistics import Look
from transformer.errors import UserError

TIMES = ("train_seconds", "seconds_per_step")


@dataclasses.dataclass
class Sweep:
    """All that a sweep has written."""

    plan: dict[str, Any]
    results: dict[tuple[str, int], dict[str, Any]]  # (variant, seed) -> result.json
    errors: dict[tuple[str, int], str]
    cost: dict[str, Any] | None
    cost_error: str | None
    damaged: frozenset[tuple[str, int]] = frozenset()  # of the errors: results that cannot be read

    @property
    def variants(self) -> list[str]:
        return list(self.plan["variants"])

    @property
    def reference(self) -> str:
        return self.plan["reference"]

    @property
    def planned(self) -> list[tuple[str, int]]:
        return [(variant, seed) for variant in self.variants for seed in self.plan["seeds"]]

    @property
    def primary(self) -> str:
        """The metric that verdicts are given for."""
        return self.plan["primary"]

    @property
    def matters(self) -> float:
        """The smallest difference of the primary metric that matters, in its own unit."""
        return self.plan["matters"]

    @property
    def looks(self) -> list[Look]:
        """The reports that gave verdicts, the last one last."""
        return [Look(tuple(look["seeds"]), look["alpha"]) for look in self.plan.get("looks", [])]

    @property
    def ended(self) -> bool:
        """Whether every planned run has finished or failed."""
        return not self.damaged and all(run in self.results or run in self.errors for run in self.planned)

    def failures(self, variant: str) -> list[int]:
        """The seeds of a variant's runs that failed, of whatever cause."""
        return [s for s in self.plan["seeds"] if (variant, s) in self.errors and (variant, s) not in self.damaged]

    def of(self, variant: str) -> list[dict[str, Any]]:
        """The finished runs of a variant, by seed."""
        return [self.results[variant, seed] for seed in self.plan["seeds"] if (variant, seed) in self.results]

    def values(self, variant: str, metric: str) -> dict[int, float]:
        """Seed -> value, of the finished runs that have one."""
        found = {run["seed"]: run["metrics"].get(metric) for run in self.of(variant)}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def metrics(self) -> list[str]:
        """All metrics: the primary, those that the question compares besides, and the others."""
        present = dict.fromkeys(name for run in self.results.values() for name in run["metrics"])
        return [name for name in dict.fromkeys([*self.main, *present]) if name in present]

    @property
    def main(self) -> list[str]:
        """The metrics that are compared, the primary first."""
        return list(dict.fromkeys([self.primary, *self.plan["main_metrics"]]))


def read(workdir: Path) -> Sweep:
    """What is in a workdir. UserError: it holds no sweep."""
    path = workdir / "sweep.json"
    if not path.is_file():
        raise UserError(f"{str(workdir)!r} holds no sweep (there is no sweep.json): name the --workdir of one")
    plan = read_plan(path)
    results, errors, damaged = {}, {}, set()
    for variant, seed in itertools.product(plan["variants"], plan["seeds"]):
        folder = workdir / "runs" / variant / f"seed{seed}"
        result, error = outcome(folder)
        if result is not None:
            results[variant, seed] = result
        elif error is not None:
            errors[variant, seed] = error
            damaged |= {(variant, seed)} if (folder / "result.json").exists() else set()
    return Sweep(plan, results, errors, *outcome(workdir / "cost", ("rows",)), frozenset(damaged))


def read_plan(path: Path) -> dict[str, Any]:
    """A sweep.json. UserError: it is damaged."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plan, dict):
            raise ValueError("it is no object")
        if missing := {"experiment", "variants", "seeds", "reference", "config", "primary", "matters"} - set(plan):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({error}): delete it, and the sweep's command goes on with the finished runs"
        ) from error
    return plan


def outcome(
    folder: Path, keys: Sequence[str] = ("metrics", "config", "parameters")
) -> tuple[dict[str, Any] | None, str | None]:
    """What a task left in its folder: (result, None), (None, why there is none) or, where it has not ended, two None.

    A result that was cut off, lacks one of `keys` or holds a metric that is no number is none, and is told.
    """
    result, error = folder / "result.json", folder / "error.txt"
    if result.exists():
        try:
            found = json.loads(result.read_text(encoding="utf-8"))
            if missing := set(keys) - set(found):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            for name, value in found.get("metrics", {}).items():
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"{name} is {value}")
        except (ValueError, TypeError) as reason:
            return None, f"{str(result)!r} is damaged ({reason}): the sweep's command measures this run again"
        return found, None
    return None, error.read_text(encoding="utf-8").strip() if error.exists() else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that was not written to its end is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Adds an object to a file of JSON lines, on the disk when this returns, on a new line also after one that was not
    written to its end."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


# --- CSV


def results_csv(sweep: Sweep, path: Path) -> None:
    """A row a planned run, sorted by variant and seed; figures to 10 digits. The last columns are times."""
    rows = []
    for variant, seed in sweep.planned:
        run = sweep.results.get((variant, seed))
        status = "finished" if run else "failed" if (variant, seed) in sweep.errors else "missing"
        row: dict[str, Any] = {"variant": variant, "seed": seed, "status": status}
        row |= {name: run["metrics"].get(name) if run else None for name in sweep.metrics}
        row |= {"parameters": run["parameters"] if run else None}
        row |= {name: run[name] if run else None for name in TIMES}
        rows.append(row)
    table_csv(rows, path)


def lengths_csv(sweep: Sweep, path: Path) -> None:
    """A row for each finished run and range of lengths."""
    rows = [
        {"variant": variant, "seed": seed, **row}
        for (variant, seed), run in sweep.results.items()
        for row in (run.get("by_length") or {"rows": []})["rows"]
    ]
    if rows:
        table_csv(rows, path)


def table_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows with the columns of all of them, empty where a row has none; figures to 10 digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.10g}" if isinstance(value, float) else value for key, value in row.items()})
