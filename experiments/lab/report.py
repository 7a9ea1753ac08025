"""The report of a sweep, from its plain files: results.csv, report.md, report.html and figures/.

`write(workdir)` reads sweep.json, runs/<variant>/seed<k>/result.json or error.txt, and cost/result.json. It trains
nothing and imports no experiment, so that a half-done or an old sweep is reported as well.
"""

import datetime
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.lab import figures, words
from experiments.lab.budgets import BUDGETS
from experiments.lab.measures import describe
from experiments.lab.render import Block, Bullets, Details, Heading, Paragraph, Spark, Table, markdown, page
from experiments.lab.results import Sweep, lengths_csv, read, results_csv, table_csv
from experiments.lab.statistics import mean_interval
from experiments.lab.verdicts import Judged, effects, judge
from transformer.analysis.comparisons import VERDICTS
from transformer.errors import UserError

POINTS = 40  # of a sparkline


def write(
    workdir: Path, findings: Callable[[Sweep, Path], tuple[list[str], list[Block]]] | None = None
) -> tuple[str, int]:
    """Writes all files of the report, with the sentences and blocks of a question's own `findings` first.

    Returns the answer with the place of the report, and how many runs failed. UserError: no run has finished.
    """
    sweep = read(workdir)
    if not sweep.results:
        why = next((f": {reason}" for reason in sweep.errors.values()), "")
        raise UserError(
            f"none of the {len(sweep.planned)} runs in {str(workdir)!r} has finished, nothing to report{why}"
        )
    results_csv(sweep, workdir / "results.csv")
    lengths_csv(sweep, workdir / "by_length.csv")
    if sweep.cost:
        table_csv(sweep.cost["rows"], workdir / "cost.csv")
    title = sweep.plan["docstring"].strip().split("\n\n")[0].replace("\n", " ")
    said, own = findings(sweep, workdir / "figures") if findings else ([words.headline(sweep)], [])
    blocks = [*(Paragraph(text, "answer") for text in said), *own, *compose(sweep, workdir / "figures")]
    (workdir / "report.md").write_text(markdown(title, blocks), encoding="utf-8")
    (workdir / "report.html").write_text(page(title, blocks, workdir / "figures"), encoding="utf-8")
    failures = len(sweep.errors) + (sweep.cost_error is not None)
    return f"{title}\n{' '.join(said)}\nreport: {workdir / 'report.html'}", failures


def command(arguments: Sequence[str]) -> str:
    """The command line, as typed after `python -m experiments.run`."""
    return shlex.join(["python", "-m", "experiments.run", *arguments[1:]])


def compose(sweep: Sweep, folder: Path) -> list[Block]:
    """All blocks of the report, in order; draws the figures into a folder."""
    paragraphs = [" ".join(part.split()) for part in sweep.plan["docstring"].strip().split("\n\n")[1:]]
    sections = {
        "Differences to the reference": _primary(sweep),
        "Tuning": _tuning(sweep, folder) if sweep.plan.get("tuning") else [],
        "Learning curves": figures.learning(sweep, folder),
        "Quality against cost": [*figures.fronts(sweep, folder), *_sizes(sweep)],
        "Quality against length": _lengths(sweep, folder),
        "Cost against length": _costs(sweep.cost, folder) if sweep.cost else [],
        "Sample outputs": _samples(sweep),
    }
    return [
        *(Paragraph(text, "warning") for text in _warnings(sweep)),
        *figures.forest(sweep, folder),
        *(block for title, blocks in sections.items() if blocks for block in (Heading(title), *blocks)),
        *_others(sweep),
        _runs(sweep),
        *([Details("Hypothesis and source", [Paragraph(text) for text in paragraphs])] if paragraphs else []),
        Heading("Where the figures come from"),
        *_provenance(sweep),
    ]


def _warnings(sweep: Sweep) -> list[str]:
    done, planned, lost = len(sweep.results), len(sweep.planned), len(sweep.errors)
    found = []
    if done + lost < planned:
        found.append(f"Not finished: {done} of {planned} runs are done. The command below goes on with the rest.")
    if lost:
        found.append(
            f"{words.count(lost, 'run')} of {planned} failed; the same command tries again. Reasons: “Every run”."
        )
    if sweep.cost_error:
        found.append(f"The cost measurement failed: {sweep.cost_error}")
    if len(sweep.plan["seeds"]) == 1:
        found.append("There is one seed, so no interval can be given: run again with --seeds=3 or more.")
    runs = sweep.results.values()
    releases = (", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()) for run in runs)
    for what, named in {
        "commits": {f"`{run.get('commit')}`" for run in runs},
        "versions": set(releases),
        "code": {f"`{(run.get('code') or 'unknown')[:8]}`" for run in runs},
        "data": {f"`{run.get('fingerprint')}`" for run in runs},
        "devices": {f"`{run.get('device')}`" for run in runs},
    }.items():
        if len(named) > 1:
            listed = "; ".join(sorted(named))
            found.append(f"The runs come from different {what} ({listed}), so differences may be theirs.")
    return found


def _named(sweep: Sweep, variant: str) -> str:
    return variant + (" (reference)" if variant == sweep.reference else "")


def _compared(metric: str, judged: Judged | None) -> list[str]:
    """The cells of a difference and its p."""
    if judged is None:
        return ["–", "–"]
    (mean, low, high, p, *_), described = judged.difference, describe(metric)
    shown = f"{words.number(mean, described, True)}{words.interval(low, high, described, True)}"
    return [shown, "–" if p is None else words.p_value(p)]


def _table(sweep: Sweep, name: str, verdicts: bool) -> Table:
    """Means and differences of one metric."""
    metric, found, rows = describe(name), judge(sweep, name), []
    for variant in sweep.variants:
        values, judged = list(sweep.values(variant, name).values()), found.get(variant)
        compared = [*_compared(name, judged), (judged and judged.verdict) or "–"][: 3 if verdicts else 1]
        counts = [str(len(values)), words.failed(sweep, variant) or "0"]
        rows.append([_named(sweep, variant), words.mean(values, metric), *compared, *counts])
    better = {1: "; more is better", -1: "; less is better", 0: ""}[metric.better]
    header = ["variant", "mean" + words.of(metric.unit), "difference" + words.of(metric.points)]
    header += [*(["p", "verdict"] if verdicts else []), "seeds", "failed"]
    caption = f"{words.capital(metric.label)}{better}. Brackets: 95 % intervals."
    return Table(header, rows, caption, marks=VERDICTS)


def _primary(sweep: Sweep) -> list[Block]:
    texts = (words.looked(sweep), words.fallback(sweep, judge(sweep, sweep.primary)), *_notes(sweep))
    parts, allowed = effects(sweep, sweep.primary)
    blocks: list[Block] = [_table(sweep, sweep.primary, True), *(Paragraph(text) for text in texts if text)]
    if parts:
        header = ["part", "effect" + words.of(describe(sweep.primary).points), "p"]
        rows = [[title, *_compared(sweep.primary, judged)] for title, judged in parts.items()]
        blocks.append(Table(header, rows, f"Parts of the names, on their own. {allowed}"))
    return blocks


def _notes(sweep: Sweep) -> list[str]:
    """What runs said that they could not measure, with the variants that said it."""
    said: dict[str, list[str]] = {}
    for (variant, _), run in sorted(sweep.results.items(), key=lambda item: sweep.planned.index(item[0])):
        for note in run.get("notes", []):
            if variant not in said.setdefault(note, []):
                said[note].append(variant)
    return [f"{' and '.join(f'`{name}`' for name in names)}: {note}" for note, names in said.items()]


def _tuning(sweep: Sweep, folder: Path) -> list[Block]:
    tuning, blocks = sweep.plan["tuning"], list[Block]()

    def shown(value: Any) -> str:
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        return ", ".join(f"`{key}={x:g}`" if key else f"{x:g}" for key, x in pairs)

    if not any(isinstance(value, dict) for value in tuning["chosen"].values()):
        blocks = figures.rates(sweep, folder)
    rows = []
    for variant, value in tuning["chosen"].items():
        width = tuning["width"].get(variant)
        tried = tuning["tried"][variant]
        least = min((row["mean"] for row in tried if row["mean"] is not None), default=None)
        rows.append([
            variant, shown(value), " to ".join(map(shown, width)) if width else "–",
            "–" if least is None else f"{least:.4g}", str(len(tried)), str(sum(bool(row["diverged"]) for row in tried)),
        ])  # fmt: skip
    header = ["variant", "chosen", "as good as it", "validation loss", "values tried", "diverged"]
    caption = f"`{tuning['key']}` of each variant, tuned with {words.count(len(tuning['seeds']), 'seed')} of its own."
    return [*blocks, Table(header, rows, caption)]


def _sizes(sweep: Sweep) -> list[Block]:
    rows = []
    for variant in sweep.variants:
        runs = sweep.of(variant)
        whole = [run for run in runs if not run.get("resumed")]  # a resumed run knows only the time of its last part
        steps = [1000 * run["seconds_per_step"] for run in whole if run.get("seconds_per_step")]
        rows.append([
            _named(sweep, variant), f"{runs[0]['parameters']:,}" if runs and runs[0]["parameters"] is not None else "–",
            f"{runs[0]['config']['steps']:,}" if runs else "–",
            f"{runs[0]['flops'] / 1e9:,.0f}" if runs and runs[0].get("flops") else "–",
            f"{median(steps):.1f}" if steps else "–",
            f"{median(run['train_seconds'] for run in whole):.0f}" if whole else "–",
        ])  # fmt: skip
    header = ["variant", "parameters", "steps", "training (GFLOP)", "step (ms)", "training (s)"]
    budget = sweep.plan.get("budget", {"kind": "steps"})["kind"]
    text = f" Each has the budget of the reference in {BUDGETS[budget]}." if budget != "steps" else ""
    return [Table(header, rows, f"Size and cost of a run; times are medians over seeds, beside other runs.{text}")]


def _lengths(sweep: Sweep, folder: Path) -> list[Block]:
    tables = {v: [run["by_length"] for run in sweep.of(v) if run.get("by_length")] for v in sweep.variants}
    tables = {variant: rows for variant, rows in tables.items() if rows}
    if not tables:
        return []
    first = next(iter(tables.values()))[0]
    blocks = figures.lengths(tables, sweep.variants, folder)
    limits = {v: rows[0]["limit"] for v, rows in tables.items() if rows[0]["limit"] is not None}
    for limit in sorted(set(limits.values())):
        names = " and ".join(f"`{v}`" for v in limits if limits[v] == limit)
        blocks.append(Paragraph(f"{names}: learned positions have {limit} rows, and no value for what is longer."))
    metric, rows = describe(first["metrics"][0]), []
    for place, row in enumerate(first["rows"]):
        cells = [f"{row['low'] + 1}–{row['high']}" + (" *" if row["high"] <= first["trained_to"] else "")]
        for runs in tables.values():
            values = [run["rows"][place][first["metrics"][0]] for run in runs]
            values = [value for value in values if value is not None]
            cells.append(words.number(mean_interval(values, metric.noise).mean, metric) if values else "–")
        rows.append([*cells, str(row["count"])])
    caption = f"{words.capital(metric.label)}{words.of(metric.unit)} by length, mean over seeds; * lengths in training."
    header = [first["axis"].split(" (")[0], *tables, "count"]
    return [*blocks, Details("The figures by length", [Table(header, rows, caption)])]


def _costs(cost: dict[str, Any], folder: Path) -> list[Block]:
    rows = cost["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    times = {(row["kind"], row["length"]): row["milliseconds"] for row in rows}
    cells = [[str(n), *(f"{times[kind, n]:.2f}" if (kind, n) in times else "–" for kind in kinds)] for n in lengths]
    caption = f"Median time of a forward and backward pass of attention alone, on {words.count(cost['cores'], 'core')}."
    table = Table(["length", *(f"{kind} (ms)" for kind in kinds)], cells, caption)
    return [Bullets(words.cost_words(rows)), *figures.cost(rows, folder), table]


def _samples(sweep: Sweep) -> list[Block]:
    """The same inputs for all variants, by their first runs; those that write the same share a row."""
    found = {v: runs[0]["samples"] for v in sweep.variants if (runs := sweep.of(v)) and runs[0].get("samples")}
    tables = list[Block]()
    for sample in next(iter(found.values()), []):
        said: dict[str, list[str]] = {}
        for variant, own in found.items():
            for other in own:
                if other["source"] == sample["source"]:
                    said.setdefault(other["output"], []).append(variant)
        truth = sample["reference"]
        rows = [[", ".join(names), f"{'✓ ' * (text == truth)}{text}"] for text, names in said.items()]
        rows = [["source", sample["source"]], ["reference", truth], *rows]
        tables.append(Table(["", ""], rows, text=True))
    more = [Details(words.count(len(tables) - 1, "more example"), tables[1:])] if tables[1:] else []
    return [*tables[:1], *more]


def _others(sweep: Sweep) -> list[Block]:
    tables = [_table(sweep, name, False) for name in sweep.metrics if name != sweep.primary]
    text = "These were not what the sweep was planned to decide, so they have no verdicts."
    return [Details("Other metrics", [Paragraph(text), *tables])] if tables else []


def _runs(sweep: Sweep) -> Details:
    """Every planned run."""
    metric, rows = describe(sweep.primary), []
    shared = any(run.get("shared_from") for run in sweep.results.values())
    for variant, seed in sweep.planned:
        run, changes = sweep.results.get((variant, seed)), sweep.plan["variants"][variant]
        value = run["metrics"].get(sweep.primary) if run else None
        losses = [y for _, y in (run or {}).get("curve", []) if y is not None]
        places = np.unique(np.linspace(0, len(losses) - 1, min(POINTS, len(losses))).round().astype(int))
        error = sweep.errors.get((variant, seed))
        rows.append([
            f"`runs/{variant}/seed{seed}`", ", ".join(f"`{key}={_shown(x)}`" for key, x in changes.items()) or "–",
            str(seed), "finished" if run else f"failed: {error}" if error else "missing",
            "–" if value is None else words.number(value, metric), f"{run['train_seconds']:.0f}" if run else "–",
            Spark([losses[i] for i in places]) if losses else "–",
            *([(run or {}).get("shared_from") or "–"] if shared else []),
        ])  # fmt: skip
    header = ["folder", "differs by", "seed", "status", metric.label, "seconds", "loss", *["shared from"] * shared]
    caption = "Each folder has the run's configuration, log and curve."
    return Details("Every run", [Table(header, rows, caption, text=True)])


def _provenance(sweep: Sweep) -> list[Block]:
    runs = list(sweep.results.values())

    def all_of(key: str) -> str:
        return ", ".join(sorted({f"`{run[key]}`" for run in runs if run.get(key) is not None})) or "unknown"

    versions = ", ".join(f"{name} {version}" for name, version in runs[0].get("versions", {}).items())
    cores = ", ".join(sorted({words.count(run["cores"], "core") for run in runs if "cores" in run}))
    ended = [datetime.datetime.fromtimestamp(run["ended"], datetime.UTC) for run in runs if "ended" in run]
    rows = [
        ["command", f"`{sweep.plan['command']}`"],
        ["base", f"`{sweep.plan['base']}`" + "".join(f", `{k}={v}`" for k, v in sweep.plan["settings"].items())],
        ["commit", all_of("commit")],
        ["data", all_of("fingerprint")],
        ["device", f"{all_of('device')}, {cores} a run"],
        ["versions", versions],
        ["begun", sweep.plan["created"]],
        *([["last run ended", max(ended).isoformat(timespec="seconds")]] if ended else []),
    ]
    keys = list(dict.fromkeys(key for changes in sweep.plan["variants"].values() for key in changes))
    base = _flat(sweep.plan["config"])
    differing = [
        [variant, *(f"`{_shown(changes.get(key, base[key]))}`" for key in keys)]
        for variant, changes in sweep.plan["variants"].items()
    ]
    return [
        Table(["", ""], rows, text=True),
        Table(["variant", *keys], differing, "Each variant is the base with these keys.", text=True),
    ]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
