"""Cases that are each measured in a process of its own, within its share of the time. What one has measured is kept,
whatever ends it (an error, a crash, the end of its time, a kill of the whole), and the others go on.

Such an experiment is one of `lab.cases` with `MOST_SECONDS`: case -> the most seconds that it may take. Its
`measure_case(..., folder)` gives rows one after another, the most wanted first, and `folder` is its own to write into.
Optional: `missing()`, sentences on what this machine lacks. `python -m experiments.lab.apart` is the process of a case.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from experiments.lab.cases import report
from experiments.lab.provenance import commit, provenance
from experiments.lab.questions import load
from experiments.lab.render import Table, markdown
from experiments.lab.results import append_line, read_lines
from experiments.lab.workers import death, die_with_parent, one_line, output_to, write_json
from transformer import command_line
from transformer.errors import UserError

ROOT = Path(__file__).parent.parent.parent
GRACE = 10.0  # seconds in which a case whose time is over may save what it has


class Measured(NamedTuple):
    """What is known of a case: its rows so far, where they come from (commit, versions, device), why there are no more
    (None: it came to its end, or has not begun), and whether it came to its end."""

    rows: list[dict[str, Any]]
    where: dict[str, Any]
    error: str | None
    finished: bool
    seconds: float


def measure(
    module: ModuleType, experiment: str, workdir: Path, command: str, report_only: bool
) -> tuple[str, list[str]]:
    """Measures the cases that are not finished and writes results.json (after each), results.csv and the report.

    Returns the answer with its tables, and the failures. UserError: nothing is measured, or it was by another commit or
    on another device.
    """
    lacking = module.missing() if hasattr(module, "missing") else []
    for text in lacking:
        print(f"missing: {text}", file=sys.stderr, flush=True)
    kept = {name: _read(workdir / name) for name in module.cases()}
    others = {str(one.where["commit"]) for one in kept.values() if one.where} - {str(commit())}
    if others and not report_only:
        raise UserError(
            f"{str(workdir)!r} holds measurements of commit {', '.join(sorted(others))}, and this is {commit()}: "
            "choose another --workdir, or use --report-only"
        )
    for name, seconds in module.MOST_SECONDS.items():
        if report_only or kept[name].finished:
            continue
        began = time.monotonic()
        _run(experiment, name, workdir / name, seconds)
        kept[name] = _read(workdir / name)
        _check_devices(kept, workdir)
        ended = kept[name].error or f"{len(kept[name].rows)} rows"
        print(f"{name}: {time.monotonic() - began:.0f} s of {seconds:.0f}: {ended}", file=sys.stderr, flush=True)
        _write_json(workdir, command, lacking, kept)
    rows = [row for name in module.cases() for row in kept[name].rows]
    failures = [f"{name}: {one.error}" for name, one in kept.items() if one.error]
    if not rows:
        raise UserError(f"nothing is measured yet in {str(workdir)!r}: {'; '.join(failures) or 'run it whole'}")
    _write_json(workdir, command, lacking, kept)
    notes = [f"Missing: {text}" for text in lacking] + [f"Failed: {text}" for text in failures]
    notes += [f"Not measured: {name}." for name, one in kept.items() if not (one.finished or one.error)]
    title, answer, blocks = report(module, workdir, rows, notes, _origin(kept, command))
    tables = markdown(title, [block for block in blocks if isinstance(block, Table)])
    said = [tables, *(f"- {text}" for text in answer), *(f"- Failed: {text}" for text in failures)]
    return "\n".join([*said, f"report: {workdir / 'report.html'}"]), failures


def _run(experiment: str, name: str, folder: Path, seconds: float) -> None:
    """One attempt at a case, in a group of processes that ends with its time, and with this process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows-{len(list(folder.glob('rows-*.jsonl'))) + 1}.jsonl"
    command = [sys.executable, "-m", "experiments.lab.apart", experiment, name, str(path)]
    began, why = time.monotonic(), None
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": _python_path()}, start_new_session=True, stdin=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        why = f"its {seconds:.0f} s were over"
    finally:  # also where a signal stops this process
        if process.poll() is None:
            _end(process)
        if not any({"finished", "error"} & set(line) for line in read_lines(path)):
            why = why or ("it was stopped" if sys.exc_info()[0] else death(process.returncode, folder / "log.txt"))
            append_line(path, {"error": why, "seconds": time.monotonic() - began})


def _end(process: subprocess.Popen[Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of the group have ended
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _read(folder: Path) -> Measured:
    """What the attempts at a case have left: the one that came to its end, or the one that came furthest."""
    best = Measured([], {}, None, False, 0.0)
    for path in sorted(folder.glob("rows-*.jsonl")):
        lines = read_lines(path)
        where: dict[str, Any] = next((line["where"] for line in lines if "where" in line), {})
        rows = [line["row"] for line in lines if "row" in line]
        ends = [line for line in lines if {"finished", "error"} & set(line)]
        last: dict[str, Any] = ends[0] if ends else {"error": "it was killed"}
        one = Measured(rows, where, last.get("error"), "finished" in last, last.get("seconds", 0.0))
        if (one.finished, len(one.rows)) >= (best.finished, len(best.rows)):
            best = one
    return best


def _check_devices(kept: dict[str, Measured], workdir: Path) -> None:
    devices = sorted({one.where["device"] for one in kept.values() if one.where})
    if len(devices) > 1:
        raise UserError(
            f"{str(workdir)!r} holds measurements of {' and '.join(devices)}: choose another --workdir for this device"
        )


def _write_json(workdir: Path, command: str, lacking: list[str], kept: dict[str, Measured]) -> None:
    cases = {name: one._asdict() for name, one in kept.items()}
    write_json(workdir / "results.json", {"command": command, "missing": lacking, "cases": cases})


def _origin(kept: dict[str, Measured], command: str) -> Table:
    where = [one.where for one in kept.values() if one.where]
    versions = {name: version for each in where for name, version in each["versions"].items()}
    rows = [
        ["command", f"`{command}`"],
        ["commit", f"`{where[0]['commit']}`"],
        ["device", f"`{where[0]['device']}`, {where[0]['cores']} cores"],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ["time", ", ".join(f"{name} {one.seconds:.0f} s" for name, one in kept.items() if one.seconds)],
    ]
    return Table(["", ""], rows, text=True)


def main(experiment: str, name: str, path: str) -> int:
    """The process of a case: its rows as lines of a file, each on the disk before the next is measured; and how it
    ended, unless it is killed."""
    die_with_parent()
    command_line.keep_freed_memory()
    module, file, began = load(experiment), Path(path), time.monotonic()
    with output_to(file.parent / "log.txt"):
        try:
            append_line(file, {"where": provenance()})
            for row in module.measure_case(**module.cases()[name], folder=file.parent):
                append_line(file, {"row": row})
            append_line(file, {"finished": True, "seconds": time.monotonic() - began})
            return 0
        except Exception as error:
            append_line(file, {"error": one_line(error), "seconds": time.monotonic() - began})
            traceback.print_exc()
            return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
