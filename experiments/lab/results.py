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

from experiments.lab.statistics import Difference, paired_difference
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

    @property
    def variants(self) -> list[str]:
        return list(self.plan["variants"])

    @property
    def reference(self) -> str:
        return self.plan["reference"]

    @property
    def planned(self) -> list[tuple[str, int]]:
        return [(variant, seed) for variant in self.variants for seed in self.plan["seeds"]]

    def of(self, variant: str) -> list[dict[str, Any]]:
        """The finished runs of a variant, by seed."""
        return [self.results[variant, seed] for seed in self.plan["seeds"] if (variant, seed) in self.results]

    def values(self, variant: str, metric: str) -> dict[int, float]:
        """Seed -> value, of the finished runs that have one."""
        found = {run["seed"]: run["metrics"].get(metric) for run in self.of(variant)}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def metrics(self) -> list[str]:
        """All metrics, those of the comparison first."""
        chosen = self.plan["main_metrics"]
        present = dict.fromkeys(name for run in self.results.values() for name in run["metrics"])
        return [name for name in chosen if name in present] + [name for name in present if name not in chosen]

    @property
    def main(self) -> list[str]:
        chosen = self.plan["main_metrics"]
        return [name for name in self.metrics if name in chosen] or self.metrics[:1]

    @property
    def answered(self) -> list[str]:
        """The metrics of the answer: the first of each split."""
        first: dict[str, str] = {}
        for name in self.main:
            first.setdefault(name.rpartition("/")[0], name)
        return list(first.values())


def read(workdir: Path) -> Sweep:
    """What is in a workdir. UserError: it holds no sweep."""
    path = workdir / "sweep.json"
    if not path.is_file():
        raise UserError(f"{str(workdir)!r} holds no sweep (there is no sweep.json): name the --workdir of one")
    plan = read_plan(path)
    results, errors = {}, {}
    for variant, seed in itertools.product(plan["variants"], plan["seeds"]):
        result, error = outcome(workdir / "runs" / variant / f"seed{seed}", ("metrics", "config", "parameters"))
        if result is not None:
            results[variant, seed] = result
        elif error is not None:
            errors[variant, seed] = error
    return Sweep(plan, results, errors, *outcome(workdir / "cost", ("rows",)))


def read_plan(path: Path) -> dict[str, Any]:
    """A sweep.json. UserError: it is damaged."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plan, dict):
            raise ValueError("it is no object")
        if missing := {"experiment", "variants", "seeds", "reference", "config"} - set(plan):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({error}): delete it, and the sweep's command goes on with the finished runs"
        ) from error
    return plan


def outcome(folder: Path, keys: Sequence[str] = ("metrics", "config")) -> tuple[dict[str, Any] | None, str | None]:
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


# --- Comparisons


def compare(sweep: Sweep, metric: str) -> dict[str, Difference]:
    """Variant -> its difference to the reference, over the seeds that both have."""
    against = sweep.values(sweep.reference, metric)
    found = {}
    for variant in sweep.variants:
        own = sweep.values(variant, metric)
        seeds = [seed for seed in own if seed in against]
        if variant != sweep.reference and seeds:
            found[variant] = paired_difference([own[s] for s in seeds], [against[s] for s in seeds], metric)
    return found


def factors(sweep: Sweep, metric: str) -> dict[str, Difference]:
    """Each part of the variants' names on its own: "window instead of full" -> its difference to the reference's part.

    For each seed the difference is averaged over what else varies. Only for a full grid of names of equal parts.
    """
    parts = {variant: tuple(variant.split("-")) for variant in sweep.variants}
    width = {len(names) for names in parts.values()}
    if len(width) != 1 or width == {1}:
        return {}
    levels = [list(dict.fromkeys(column)) for column in zip(*parts.values(), strict=True)]
    if len(list(itertools.product(*levels))) != len(parts) or sum(len(names) > 1 for names in levels) < 2:
        return {}  # no grid, or one whose only factor is what the variants compare already
    base, found = parts[sweep.reference], {}
    for place, names in enumerate(levels):
        for name in names:
            if name == base[place]:
                continue
            pairs = []
            for variant, own in parts.items():
                if own[place] == name:
                    other = "-".join([*own[:place], base[place], *own[place + 1 :]])
                    pairs.append((sweep.values(variant, metric), sweep.values(other, metric)))
            seeds = [seed for seed in sweep.plan["seeds"] if all(seed in a and seed in b for a, b in pairs)]
            if seeds:
                a = [sum(values[seed] for values, _ in pairs) / len(pairs) for seed in seeds]
                b = [sum(values[seed] for _, values in pairs) / len(pairs) for seed in seeds]
                found[f"{name} instead of {base[place]}"] = paired_difference(a, b, metric)
    return found


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
