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

from experiments import figures
from experiments.measures import Metric, describe
from experiments.render import Block, Bullets, Heading, Paragraph, Table, markdown, page
from experiments.results import Sweep, adjusted, compare, factors, flat, lengths_csv, read, results_csv, table_csv
from experiments.statistics import mean_interval
from transformer.config import UserError

MINUS = "−"


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
    said = "\n".join(f"- {text}" for text in answer(sweep))
    failures = len(sweep.errors) + (sweep.cost_error is not None)
    return f"{title}\n{said}\nreport: {workdir / 'report.html'}", failures


def command(arguments: Sequence[str]) -> str:
    """The command line, as typed after `python -m experiments.run`."""
    return shlex.join(["python", "-m", "experiments.run", *arguments[1:]])


# --- Figures as words


def number(value: float, metric: Metric, signed: bool = False) -> str:
    """A value in the metric's unit; a minus is a minus sign."""
    shown = round(value * metric.scale, metric.digits) or 0.0  # no minus before a zero
    return f"{shown:{'+' if signed and shown else ''}.{metric.digits}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, metric: Metric, signed: bool = False) -> str:
    """[low, high], or nothing where one seed gives none."""
    if low is None or high is None:
        return ""
    return f" [{number(low, metric, signed)}, {number(high, metric, signed)}]"


def answer(sweep: Sweep) -> list[str]:
    """The answer for the first metric of each split, in words made from the numbers."""
    texts = []
    for name in sweep.answered:
        metric = describe(name)
        values = list(sweep.values(sweep.reference, name).values())
        if not values:
            texts.append(
                f"{metric.label}: the paper's variant ({sweep.reference}) has no value yet, so nothing is compared."
            )
            continue
        mean = mean_interval(values, name)
        unit = f" {metric.unit}" if metric.unit else ""
        spread = (
            f" (95 % interval{interval(mean.low, mean.high, metric)}, {mean.n} seeds)"
            if mean.n > 1
            else " (one seed, which gives no interval)"
        )
        text = f"{metric.label}: the paper's variant, {sweep.reference}, reached "
        text += f"{number(mean.mean, metric)}{unit}{spread}."
        found = compare(sweep, name)
        corrected = adjusted(found)
        groups: dict[str, list[str]] = {}
        for variant, d in found.items():
            shown = f"{variant} ({number(d.mean, metric, True)}{metric.points}{interval(d.low, d.high, metric, True)}"
            if d.low is None or d.high is None:
                kind = "alone"
            elif d.low <= 0 <= d.high:
                kind = "none"
            else:
                kind = "better" if (d.mean > 0) == (metric.better > 0) else "worse"
                if corrected[variant] >= 0.05:
                    shown += f"; not beyond doubt, p = {_p(corrected[variant])} after Holm's correction"
            groups.setdefault(kind, []).append(shown + ")")
        lead = {
            "better": "Better than it: ",
            "worse": "Worse: ",
            "none": "No difference was seen, as the interval contains 0: ",
            "alone": "One pair of runs cannot tell a difference from chance: ",
        }
        for kind in lead:
            if kind in groups:
                text += f" {lead[kind]}{', '.join(groups[kind])}."
        without = [v for v in sweep.variants if v not in found and v != sweep.reference and sweep.of(v)]
        if without:
            text += f" No value: {', '.join(without)}."
        parts = [
            f"{part} {number(d.mean, metric, True)}{metric.points}{interval(d.low, d.high, metric, True)}"
            for part, d in factors(sweep, name).items()
        ]
        if parts:
            text += f" Averaged over all else: {', '.join(parts)}."
        texts.append(text[0].upper() + text[1:])
    if sweep.cost:
        texts.append(f"Cost of attention alone: {' '.join(cost_words(sweep.cost['rows']))}")
    return texts


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(number_of: int, noun: str) -> str:
    return f"{number_of} {noun}" + ("" if number_of == 1 else "s")


# --- The report


def compose(sweep: Sweep, workdir: Path) -> list[Block]:
    """All blocks of the report, in order; draws the figures."""
    paragraphs = [" ".join(part.split()) for part in sweep.plan["docstring"].strip().split("\n\n")[1:]]
    return [
        *_state(sweep),
        Heading("Answer"),
        Bullets(answer(sweep), "answer"),
        Paragraph("Brackets hold 95 % intervals over seeds; differences are paired over seeds."),
        Heading("Hypothesis and source"),
        *(Paragraph(text) for text in paragraphs),
        Heading("Results"),
        *_means(sweep),
        *(Paragraph(text) for text in _notes(sweep)),
        *figures.learning(sweep, workdir / "figures"),
        Heading("Differences to the paper's variant"),
        *_differences(sweep),
        *figures.differences(sweep, workdir / "figures"),
        *_lengths(sweep, workdir),
        *_costs(sweep, workdir),
        Heading("What the data cannot say"),
        Bullets(_limits(sweep)),
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
            f"{_count(failed, 'run')} of {planned} failed and {'is' if failed == 1 else 'are'} missing below. "
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
    if len({run.get("fingerprint") for run in sweep.results.values()}) > 1:
        blocks.append(
            Paragraph("The runs come from different data (see the fingerprints): they do not compare.", "warning")
        )
    return blocks


def _means(sweep: Sweep) -> list[Block]:
    """Two tables: quality, and size and time."""
    metrics = {name: describe(name) for name in sweep.main}
    quality, sizes = [], []
    for variant in sweep.variants:
        runs = sweep.of(variant)
        name = variant + (" (the paper's)" if variant == sweep.reference else "")
        means = []
        for key, metric in metrics.items():
            values = list(sweep.values(variant, key).values())
            mean = mean_interval(values, key) if values else None
            means.append(f"{number(mean.mean, metric)}{interval(mean.low, mean.high, metric)}" if mean else "–")
        quality.append([name, *means, str(len(runs))])
        whole = [run for run in runs if not run.get("resumed")]  # a resumed run knows only the time of its last part
        steps = [1000 * run["seconds_per_step"] for run in whole if run.get("seconds_per_step")]
        sizes.append(
            [
                name,
                f"{runs[0]['parameters']:,}" if runs else "–",
                f"{median_of.median(steps):.1f}" if steps else "–",
                f"{median_of.median(run['train_seconds'] for run in whole):.0f}" if whole else "–",
            ]
        )
    labels = [f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}" for metric in metrics.values()]
    caption = "Quality: mean over seeds and its 95 % t interval."
    return [
        Table(["variant", *labels, "seeds"], quality, caption),
        Table(["variant", "parameters", "step (ms)", "training (s)"], sizes, "Size and time: medians over seeds."),
    ]


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
        return [
            Paragraph(f"The paper's variant, `{sweep.reference}`, has no finished run, so no difference can be given.")
        ]
    for name in sweep.main:
        metric = describe(name)
        tables = [compare(sweep, name), factors(sweep, name)]
        rows = []
        for found in tables:
            corrected = adjusted(found)
            for row, d in found.items():
                shown = f"{number(d.mean, metric, True)}{interval(d.low, d.high, metric, True)}"
                corrected_p = _p(corrected[row]) if row in corrected else "–"
                rows.append([row, shown, "–" if d.p is None else _p(d.p), corrected_p, str(d.n)])
        if rows:
            caption = f"{metric.label[0].upper()}{metric.label[1:]}{f', in{metric.points}' if metric.points else ''}"
            caption += "; " + ("more" if metric.better > 0 else "less") + " is better"
            blocks.append(Table(["variant", "difference", "p", "p (Holm)", "seeds"], rows, caption))
    if blocks:
        text = (
            "Paired over seeds: runs of one seed share their parameters at step 0, their batches and their dropout "
            "masks. p is the paired t test's; Holm's correction is over the variants of one table."
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
    caption = f"{metric.label[0].upper()}{metric.label[1:]}{unit} by length, mean over seeds"
    blocks.append(Table(header, rows, f"{caption}; * lengths that occur in training."))
    return blocks


def cost_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    """From which length on each kind is faster (by a tenth) than the first one, one sentence each."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    times = {(row["kind"], row["length"]): row["milliseconds"] for row in rows}
    texts = []
    for kind in kinds[1:]:
        pairs = [
            (length, times[kinds[0], length] / times[kind, length]) for length in lengths if (kind, length) in times
        ]
        from_here = next((n for i, (n, _) in enumerate(pairs) if all(ratio > 1.1 for _, ratio in pairs[i:])), None)
        last, ratio = pairs[-1]
        if from_here is None:
            texts.append(f"{kind}: no faster than “{kinds[0]}” ({ratio:.1f} times as fast at {last}).")
        else:
            texts.append(
                f"{kind}: faster than “{kinds[0]}” from length {from_here} on, {ratio:.1f} times as fast at {last}."
            )
    return texts


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
        f"Median time of one forward and backward pass of attention alone, on {_count(sweep.cost['cores'], 'core')}.",
    )
    return [Heading("Cost against length"), Bullets(cost_words(rows)), *figures.cost(rows, workdir / "figures"), table]


def _limits(sweep: Sweep) -> list[str]:
    config, seeds = sweep.plan["config"], len(sweep.plan["seeds"])
    items = []
    for name in sweep.answered:
        metric = describe(name)
        widths = [
            (d.high - d.low) / 2 for d in compare(sweep, name).values() if d.low is not None and d.high is not None
        ]
        if widths:
            items.append(
                f"Small differences: with {_count(seeds, 'seed')}, a difference in {metric.label} of less than about "
                f"{number(median_of.median(widths), metric)}{metric.points} would not be seen (the median half-width "
                "of the intervals)."
            )
    if seeds < 2:
        items.append("Any difference: one seed shows no spread.")
    items += [
        "Intervals are Student's t over seeds: they assume roughly normal spread and hold for new seeds on these test "
        "sentences, not for new test sentences. Near 0 or 100 % they may reach past the possible.",
        f"Other data: all runs are on `{config['data']['name']}`.",
        f"Other sizes and longer training: {config['model']['num_layers']} layers, width {config['model']['d_model']}, "
        f"{config['steps']} steps, and settings that were tuned for no variant in particular.",
        "Times were taken while other runs had the other cores; they compare variants within this table only.",
    ]
    return items


def _provenance(sweep: Sweep) -> list[Block]:
    runs = list(sweep.results.values())

    def all_of(key: str) -> str:
        return ", ".join(sorted({f"`{run[key]}`" for run in runs if run.get(key) is not None})) or "unknown"

    versions = ", ".join(f"{name} {version}" for name, version in runs[0].get("versions", {}).items())
    cores = ", ".join(sorted({_count(run["cores"], "core") for run in runs if "cores" in run}))
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
    base = flat(sweep.plan["config"])

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
