"""The report of a sweep, from its plain files: results.csv, report.md, report.html and figures/.

`write(workdir)` reads sweep.json, runs/<variant>/seed<k>/result.json or error.txt, and cost/result.json. It trains
nothing and imports no experiment, so that a half-done or an old sweep is reported as well.
"""

import datetime
import shlex
import statistics as median_of
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab import figures
from experiments.lab.budgets import BUDGETS
from experiments.lab.measures import describe
from experiments.lab.render import Block, Bullets, Heading, Paragraph, Table, markdown, page
from experiments.lab.results import Sweep, compare, factors, lengths_csv, read, results_csv, table_csv
from experiments.lab.statistics import adjusted, bootstrap_interval, mean_interval
from experiments.lab.words import (
    MINUS,
    answer,
    capital,
    cost_words,
    count,
    headline,
    interval,
    limits,
    mean,
    number,
    p_value,
    visible,
)
from transformer.errors import UserError

# --- Writing


def write(workdir: Path) -> tuple[str, int]:
    """Writes all files of the report.

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
    blocks = compose(sweep, workdir)
    (workdir / "report.md").write_text(markdown(title, blocks), encoding="utf-8")
    (workdir / "report.html").write_text(page(title, blocks, workdir / "figures"), encoding="utf-8")
    said = "\n".join([headline(sweep), *(f"- {text}" for text in answer(sweep))])
    failures = len(sweep.errors) + (sweep.cost_error is not None)
    return f"{title}\n{said}\nreport: {workdir / 'report.html'}", failures


def command(arguments: Sequence[str]) -> str:
    """The command line, as typed after `python -m experiments.run`."""
    return shlex.join(["python", "-m", "experiments.run", *arguments[1:]])


# --- The report


def compose(sweep: Sweep, workdir: Path) -> list[Block]:
    """All blocks of the report, in order; draws the figures."""
    paragraphs = [" ".join(part.split()) for part in sweep.plan["docstring"].strip().split("\n\n")[1:]]
    return [
        *_state(sweep),
        Heading("Answer"),
        Paragraph(headline(sweep), "answer"),
        Bullets(answer(sweep)),
        Paragraph("Brackets hold 95 % intervals over seeds; differences are paired over seeds."),
        Heading("Hypothesis and source"),
        *(Paragraph(text) for text in paragraphs),
        Heading("Results"),
        *_means(sweep),
        *(Paragraph(text) for text in _notes(sweep)),
        *figures.learning(sweep, workdir / "figures"),
        Heading("Differences to the reference"),
        *_differences(sweep),
        *figures.differences(sweep, workdir / "figures"),
        *figures.fronts(sweep, workdir / "figures"),
        *_lengths(sweep, workdir),
        *_costs(sweep, workdir),
        Heading("What the data cannot say"),
        Bullets(limits(sweep)),
        Heading("Where the figures come from"),
        *_provenance(sweep),
    ]


def _state(sweep: Sweep) -> list[Block]:
    blocks: list[Block] = []
    done, planned, failed = len(sweep.results), len(sweep.planned), len(sweep.errors)
    if done + failed < planned:
        blocks.append(
            Paragraph(
                f"This sweep is not finished: {done} of {planned} runs are done, so the figures below are of these "
                "only. The command at the end of this report goes on with the rest.",
                "warning",
            )
        )
    if failed or sweep.cost_error:
        text = (
            f"{count(failed, 'run')} of {planned} failed and {'is' if failed == 1 else 'are'} missing below. "
            if failed
            else ""
        )
        blocks.append(Paragraph(f"{text}The same command tries again what failed. Reasons:", "warning"))
        reasons = [f"`{v}` seed {seed}: {why}" for (v, seed), why in sweep.errors.items()]
        blocks.append(
            Bullets(reasons + ([f"cost measurement: {sweep.cost_error}"] if sweep.cost_error else []), "warning")
        )
    if len(sweep.plan["seeds"]) == 1:
        blocks.append(
            Paragraph("There is one seed, so no interval can be given: run again with --seeds=3 or more.", "warning")
        )
    commits = {run.get("commit") for run in sweep.results.values()}
    if len(commits) > 1:
        listed = ", ".join(sorted(f"`{name}`" for name in map(str, commits)))
        blocks.append(
            Paragraph(f"The runs come from different commits ({listed}): differences may be the code's.", "warning")
        )
    releases = {
        ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
        for run in sweep.results.values()
    }
    if len(releases) > 1:
        listed = "; ".join(sorted(releases))
        blocks.append(
            Paragraph(f"The runs come from different versions ({listed}): differences may be theirs.", "warning")
        )
    if len({run.get("fingerprint") for run in sweep.results.values()}) > 1:
        blocks.append(
            Paragraph("The runs come from different data (see the fingerprints): they do not compare.", "warning")
        )
    return blocks


def _means(sweep: Sweep) -> list[Block]:
    """Two tables: quality, and size and time."""
    metrics = {name: describe(name) for name in sweep.main}
    quality, sizes = [], []
    counted = any(run.get("flops") for run in sweep.results.values())  # older results are without
    for variant in sweep.variants:
        runs = sweep.of(variant)
        name = variant + (" (reference)" if variant == sweep.reference else "")
        means = [mean(list(sweep.values(variant, key).values()), metric) for key, metric in metrics.items()]
        quality.append([name, *means, str(len(runs))])
        whole = [run for run in runs if not run.get("resumed")]  # a resumed run knows only the time of its last part
        steps = [1000 * run["seconds_per_step"] for run in whole if run.get("seconds_per_step")]
        sizes.append(
            [
                name,
                f"{runs[0]['parameters']:,}" if runs else "–",
                f"{runs[0]['config']['steps']:,}" if runs else "–",
                *([f"{runs[0]['flops'] / 1e9:,.0f}" if runs and runs[0].get("flops") else "–"] if counted else []),
                f"{median_of.median(steps):.1f}" if steps else "–",
                f"{median_of.median(run['train_seconds'] for run in whole):.0f}" if whole else "–",
            ]
        )
    labels = [f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}" for metric in metrics.values()]
    caption = "Quality: mean over seeds and its 95 % t interval."
    costs = ["parameters", "steps", *(["training (GFLOP)"] if counted else []), "step (ms)", "training (s)"]
    blocks: list[Block] = [
        Table(["variant", *labels, "seeds"], quality, caption),
        Table(["variant", *costs], sizes, "Size and cost of a run; times are medians over seeds."),
    ]
    budget = sweep.plan.get("budget", {"kind": "steps"})["kind"]
    if budget != "steps":
        text = f"Each variant has the budget of the reference in {BUDGETS[budget]}, so their steps differ."
        blocks.insert(0, Paragraph(text))
    return blocks


def _notes(sweep: Sweep) -> list[str]:
    """What runs said that they could not measure, with the variants that said it."""
    said: dict[str, list[str]] = {}
    for (variant, _), run in sorted(sweep.results.items(), key=lambda item: sweep.planned.index(item[0])):
        for note in run.get("notes", []):
            if variant not in said.setdefault(note, []):
                said[note].append(variant)
    return [f"{' and '.join(f'`{name}`' for name in names)}: {note}" for note, names in said.items()]


def _differences(sweep: Sweep) -> list[Block]:
    blocks: list[Block] = []
    if not sweep.of(sweep.reference):
        return [Paragraph(f"The reference, `{sweep.reference}`, has no finished run, so no difference can be given.")]
    for name in sweep.main:
        metric = describe(name)
        tables = [compare(sweep, name), factors(sweep, name)]
        rows = []
        for found in tables:
            corrected = adjusted(found)
            for row, d in found.items():
                shown = f"{number(d.mean, metric, True)}{interval(d.low, d.high, metric, True)}"
                low, high = bootstrap_interval(d.pairs) or (None, None)
                resampled = interval(low, high, metric, True).strip()
                effect = "–" if d.effect is None else f"{d.effect:+.1f}".replace("-", MINUS)
                corrected_p = p_value(corrected[row]) if row in corrected else "–"
                p = "–" if d.p is None else p_value(d.p)
                rows.append([row, shown, effect, p, corrected_p, resampled or "–", str(d.n)])
        if rows:
            caption = f"{capital(metric.label)}{f', in{metric.points}' if metric.points else ''}"
            caption += {1: "; more is better", -1: "; less is better", 0: ""}[metric.better]
            header = ["variant", "difference", "effect", "p", "p (Holm)", "bootstrap", "seeds"]
            blocks.append(Table(header, rows, caption))
            if name in sweep.answered and (text := visible(sweep, name)):
                blocks.append(Paragraph(text))
    if blocks:
        text = (
            "Paired over seeds: runs of one seed share batches, dropout masks and parameters at step 0, as far as "
            "their data and shapes are the same. p is the paired t test's; Holm's correction is over the variants of "
            "one table. The effect is the mean over its spread from seed to seed (Cohen's d of pairs, with Hedges' "
            "correction). The bootstrap's interval is a second opinion from ten seeds on: of three it only reaches "
            "from the lowest to the highest, and holds the truth 75 % of the time where 95 % is meant."
        )
        if factors(sweep, sweep.main[0]):
            text += (
                " Rows with “instead of” average over all else that varies, and are corrected among themselves; they "
                "are left out where a variant has no value."
            )
        blocks.insert(0, Paragraph(text))
    return blocks


def _lengths(sweep: Sweep, workdir: Path) -> list[Block]:
    tables = {
        variant: [run["by_length"] for run in sweep.of(variant) if run.get("by_length")] for variant in sweep.variants
    }
    tables = {variant: rows for variant, rows in tables.items() if rows}
    if not tables:
        return []
    first = next(iter(tables.values()))[0]
    blocks: list[Block] = [Heading("Quality against length")]
    ends = {v: rows[0]["limit"] for v, rows in tables.items() if rows[0]["limit"] is not None}
    highest = max(row["high"] for row in first["rows"])
    for limit in sorted(set(ends.values())):
        names = " and ".join(f"`{v}`" for v in ends if ends[v] == limit)
        gone = [row for row in first["rows"] if row["high"] > limit]
        text = f"{names}: the table of learned positions has {limit} rows, and no entry past them."
        if highest > limit and gone:
            text += (
                f" The ranges of length that reach past it ({gone[0]['low'] + 1} to {highest}) therefore have no "
                "value, and the library raises an error where it is asked for one."
            )
        if first["trained_to"] < limit:
            text += (
                f" Rows {first['trained_to'] + 1} to {limit} are there, but no training example reached them: they are "
                "as they were initialised."
            )
        blocks.append(Paragraph(text))
    blocks += figures.lengths(tables, workdir / "figures")
    main = first["metrics"][0]
    metric = describe(main)
    header = [first["axis"].split(" (")[0], "count", *tables]
    rows = []
    for place, row in enumerate(first["rows"]):
        cells = [
            f"{row['low'] + 1}–{row['high']}" + (" *" if row["high"] <= first["trained_to"] else ""),
            str(row["count"]),
        ]
        for runs in tables.values():
            values = [run["rows"][place][main] for run in runs if run["rows"][place][main] is not None]
            mean = mean_interval(values, main) if values else None
            cells.append(number(mean.mean, metric) if mean else "–")
        rows.append(cells)
    unit = f" ({metric.unit})" if metric.unit else ""
    caption = f"{capital(metric.label)}{unit} by length, mean over seeds"
    blocks.append(Table(header, rows, f"{caption}; * lengths that occur in training."))
    return blocks


def _costs(sweep: Sweep, workdir: Path) -> list[Block]:
    if not sweep.cost:
        return []
    rows = sweep.cost["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    times = {(row["kind"], row["length"]): row["milliseconds"] for row in rows}
    table = Table(
        ["length", *(f"{kind} (ms)" for kind in kinds)],
        [[str(n), *(f"{times[kind, n]:.2f}" if (kind, n) in times else "–" for kind in kinds)] for n in lengths],
        f"Median time of one forward and backward pass of attention alone, on {count(sweep.cost['cores'], 'core')}.",
    )
    return [Heading("Cost against length"), Bullets(cost_words(rows)), *figures.cost(rows, workdir / "figures"), table]


def _provenance(sweep: Sweep) -> list[Block]:
    runs = list(sweep.results.values())

    def all_of(key: str) -> str:
        return ", ".join(sorted({f"`{run[key]}`" for run in runs if run.get(key) is not None})) or "unknown"

    versions = ", ".join(f"{name} {version}" for name, version in runs[0].get("versions", {}).items())
    cores = ", ".join(sorted({count(run["cores"], "core") for run in runs if "cores" in run}))
    ended = [run["ended"] for run in runs if "ended" in run]
    rows = [
        ["command", f"`{sweep.plan['command']}`"],
        ["base", f"`{sweep.plan['base']}`" + "".join(f", `{k}={v}`" for k, v in sweep.plan["settings"].items())],
        ["commit", all_of("commit")],
        ["data", all_of("fingerprint")],
        ["device", f"{all_of('device')}, {cores} a run"],
        ["versions", versions],
        ["begun", sweep.plan["created"]],
    ]
    if ended:
        rows.append(
            ["last run ended", datetime.datetime.fromtimestamp(max(ended), datetime.UTC).isoformat(timespec="seconds")]
        )
    keys = list(dict.fromkeys(key for changes in sweep.plan["variants"].values() for key in changes))
    base = _flat(sweep.plan["config"])

    def shown(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    differing = [
        [variant, *(f"`{shown(changes.get(key, base[key]))}`" for key in keys)]
        for variant, changes in sweep.plan["variants"].items()
    ]
    return [
        Table(["", ""], rows, text=True),
        Table(["variant", *keys], differing, "Each variant is the base with these keys.", text=True),
        Paragraph("Each run's full configuration, log and learning curve are in `runs/<variant>/seed<k>/`."),
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
