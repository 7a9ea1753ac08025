"""Experiments that measure cases one after another, in place of training variants with seeds.

Such a file has `cases()`: name -> arguments of `measure_case(...)`, which gives rows (flat dicts); and
`findings(rows, folder)`, which gives the sentences of the answer and the blocks of the report, drawing its figures into
`folder`. Rows are kept as they come, so the same command goes on where it stopped.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from experiments.lab.provenance import provenance
from experiments.lab.render import Block, Bullets, Heading, Paragraph, Table, markdown, page
from experiments.lab.results import append_line, read_lines, table_csv
from transformer.errors import UserError


def measure(module: ModuleType, workdir: Path, command: str, report_only: bool) -> str:
    """Measures the cases that are missing and writes rows.jsonl, results.csv and the report.

    Returns the answer with the place of the report. UserError: nothing is measured yet, or it was by another code.
    """
    path, cases = workdir / "rows.jsonl", module.cases()
    kept = read_lines(path)
    where = provenance()
    if kept and not report_only and (others := {line["commit"] for line in kept} - {where["commit"]}):
        raise UserError(
            f"{str(workdir)!r} holds measurements of commit {', '.join(map(str, others))}, and this is "
            f"{where['commit']}: choose another --workdir, or use --report-only"
        )
    missing = [] if report_only else [name for name in cases if name not in {line["case"] for line in kept}]
    bar = tqdm(missing, unit="case", dynamic_ncols=True, disable=not sys.stderr.isatty())
    for name in bar:
        bar.set_postfix_str(name)
        began = time.monotonic()
        rows = module.measure_case(**cases[name])
        if bar.disable:
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        line = {"case": name, "rows": rows, "seconds": time.monotonic() - began, **where}
        append_line(path, line)
        kept.append(line)
    rows = [row for name in cases for line in kept if line["case"] == name for row in line["rows"]]
    if not rows:
        raise UserError(f"nothing is measured yet in {str(workdir)!r}: run without --report-only")
    done = {line["case"] for line in kept}
    notes = [f"Not finished: {len(done)} of {len(cases)} cases are measured."] if len(done) < len(cases) else []
    title, answer, _ = report(module, workdir, rows, notes, _origin(kept, command))
    return "\n".join([title, *(f"- {text}" for text in answer), f"report: {workdir / 'report.html'}"])


def report(
    module: ModuleType, workdir: Path, rows: list[dict[str, Any]], notes: Sequence[str], origin: Table
) -> tuple[str, list[str], list[Block]]:
    """Writes results.csv, report.md and report.html; returns the title, and the answer and blocks of `findings`."""
    table_csv(rows, workdir / "results.csv")
    title, *paragraphs = (" ".join(part.split()) for part in (module.__doc__ or "").strip().split("\n\n"))
    answer, blocks = module.findings(rows, workdir / "figures")
    pages: list[Block] = [
        *(Paragraph(text, "warning") for text in notes),
        Heading("Answer"),
        Bullets(answer, "answer"),
        Heading("Hypothesis and source"),
        *(Paragraph(text) for text in paragraphs),
        Heading("Results"),
        *blocks,
        Heading("Where the figures come from"),
        origin,
    ]
    (workdir / "report.md").write_text(markdown(title, pages), encoding="utf-8")
    (workdir / "report.html").write_text(page(title, pages, workdir / "figures"), encoding="utf-8")
    return title, answer, blocks


def _origin(kept: list[dict[str, Any]], command: str) -> Table:
    last = kept[-1]
    rows = [
        ["command", f"`{command}`"],
        ["commit", ", ".join(sorted({f"`{line['commit']}`" for line in kept}))],
        ["device", f"`{last['device']}`, {last['cores']} cores"],
        ["versions", ", ".join(f"{name} {version}" for name, version in last["versions"].items())],
        ["time", f"{sum(line['seconds'] for line in kept):.0f} s"],
    ]
    return Table(["", ""], rows, text=True)
