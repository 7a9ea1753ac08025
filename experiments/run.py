"""python -m experiments.run positions_and_windows --workdir=DIR [--base=FILE] [--seeds=3] [--jobs=2] [--set KEY=VALUE]

Trains every variant of an experiment with every seed, and writes results.csv, report.md, report.html and figures/.
The same command again goes on where it stopped: finished runs are kept, unfinished and failed ones are tried again.
"""

import argparse
import dataclasses
import datetime
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from tqdm import tqdm

from experiments import measurement, report, workers
from experiments.definitions import FOLDER, available, build, load, parse_setting
from experiments.measures import main_metrics
from experiments.plan import expect, table
from experiments.results import flat
from experiments.single import Cost, Run, read_lines
from transformer import command_line
from transformer.config import MAY_CHANGE, Config, UserError, differences, load_file, override, to_dict

INTERRUPTED = "interrupted; the same command goes on from here, and --report-only reports what there is"


class Progress:
    """Tells of all runs at once: a bar over steps on a terminal, a line for each finished run elsewhere."""

    def __init__(self, runs: int, done: int, steps: int):
        self.runs, self.done, self.steps, self.failures = runs, done, steps, 0
        self.began, self.first, self.complete = time.monotonic(), done, done * steps
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=runs * steps, initial=self.complete, unit="step", dynamic_ncols=True, smoothing=0.05)

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def finished(self, task: Any, result: dict[str, Any]) -> None:
        if isinstance(task, Cost):
            return
        self.done += 1
        shown = [f"{key} {value:.4g}" for key, value in result["metrics"].items() if value is not None][:3]
        self._end(task, f"{', '.join(shown)} ({result['train_seconds']:.0f} s)")

    def failed(self, task: Any, reason: str) -> None:
        self.failures += 1
        self._end(task, f"FAILED: {reason}")

    def _end(self, task: Any, text: str) -> None:
        self.complete += self.steps
        ended = self.done + self.failures - self.first
        left = (time.monotonic() - self.began) / ended * (self.runs - self.first - ended)
        rest = f"{math.ceil(left / 60)} min" if left > 90 else f"{math.ceil(left)} s"
        more = f"; about {rest} left" if left > 0 and self.bar is None else ""
        self.say(f"[{self.done + self.failures}/{self.runs}] {task.name}: {text}{more}")

    def tick(self, running: Sequence[Any]) -> None:
        if self.bar is None:
            return
        states = []
        at = self.complete
        for task in running:
            if isinstance(task, Run):
                last = next(iter(read_lines(task.folder / "metrics.jsonl")[-1:]), {"step": 0})
                at += last["step"]
                states.append(f"{task.name} {last['step']}/{self.steps}")
        self.bar.set_postfix_str(f"{self.done}/{self.runs} runs; " + ", ".join(states))
        self.bar.update(max(0, at - self.bar.n))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def claim(workdir: Path, sweep: dict[str, Any], configs: dict[str, Config], base: Config) -> dict[str, Any]:
    """Writes sweep.json, or joins the sweep that is there. UserError: it is another one."""
    path = workdir / "sweep.json"
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["experiment"] != sweep["experiment"]:
            raise UserError(
                f"{str(workdir)!r} holds the experiment {old['experiment']!r}, not {sweep['experiment']!r}: choose "
                "another --workdir"
            )
        kept = override(Config(), flat(old["config"]))
        changed = {
            key: pair
            for key, pair in differences(kept, base).items()
            if key == "steps" or key.split(".")[0] not in MAY_CHANGE
        }
        if changed:
            listed = "; ".join(f"{key} was {a!r} and is now {b!r}" for key, (a, b) in changed.items())
            raise UserError(
                f"{str(workdir)!r} holds a sweep of another base config ({listed}): choose another --workdir"
            )
        sweep = sweep | {"created": old["created"], "seeds": sorted({*old["seeds"], *sweep["seeds"]})}
    for variant, config in configs.items():
        for file in sorted((workdir / "runs" / variant).glob("seed*/result.json")):
            result = json.loads(file.read_text(encoding="utf-8"))
            expected = to_dict(dataclasses.replace(config, seed=result["seed"], **ignored(config)))
            found = to_dict(override(Config(), flat(result["config"])))
            found |= {key: expected[key] for key in ignored(config)}
            if found != expected:
                raise UserError(
                    f"{str(file.parent)!r} was trained as another variant than {variant!r} is now: choose another "
                    "--workdir, or delete that folder to train it again"
                )
    workdir.mkdir(parents=True, exist_ok=True)
    workers.write_json(path, sweep)
    return sweep


def ignored(config: Config) -> dict[str, Any]:
    """What may differ between runs of one sweep."""
    return {"mesh": config.mesh, "logging": config.logging}


def only_one(workdir: Path) -> IO[str]:
    """Makes the workdir and holds it for this process. UserError: it cannot be written, or another one is at work."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to --workdir={str(workdir)!r}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(
            f"another sweep is at work in {str(workdir)!r}: wait for it, or choose another --workdir"
        ) from None
    return handle


def sweep(arguments: argparse.Namespace) -> int:
    """Runs what is missing and writes the report; the exit code: 1 where a run failed."""
    module, workdir = load(arguments.experiment), Path(arguments.workdir)
    if hasattr(module, "cases"):
        return measure_cases(arguments, module, workdir)
    base_file = arguments.base or module.BASE
    base = load_file(FOLDER.parent / base_file if not Path(base_file).exists() else base_file)
    settings = dict(parse_setting(text) for text in arguments.set)
    if arguments.steps is not None:
        settings["steps"] = arguments.steps
    base = override(base, settings)
    configs = build(module, base)
    plan = {
        "experiment": Path(arguments.experiment).stem,
        "docstring": module.__doc__,
        "base": base_file,
        "settings": settings,
        "command": report.command(sys.argv),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": to_dict(base),
        "variants": module.variants(base),
        "reference": module.REFERENCE,
        "main_metrics": getattr(module, "MAIN_METRICS", None) or main_metrics(base),
        "seeds": list(range(arguments.first_seed, arguments.first_seed + arguments.seeds)),
    }
    with only_one(workdir):
        plan = claim(workdir, plan, configs, base)
        runs = [
            Run(
                arguments.experiment,
                variant,
                seed,
                dataclasses.replace(config, seed=seed),
                plan["variants"][variant],
                workdir / "runs" / variant / f"seed{seed}",
            )
            for seed in plan["seeds"]  # all variants of a seed first, so that a sweep that is stopped stays balanced
            for variant, config in configs.items()
        ]
        missing = [run for run in runs if not (run.folder / "result.json").exists()]
        if arguments.dry_run:
            expected = expect(missing, arguments.jobs)
            print(table(expected, len(missing), arguments.jobs))
            return 0 if len(expected) == len({run.variant for run in missing}) else 1
        progress = Progress(len(runs), len(runs) - len(missing), base.steps)
        if not arguments.report_only:
            progress.say(
                f"{len(runs)} runs of {base.steps} steps: {len(configs)} variants, seeds {str(plan['seeds'])[1:-1]}"
                + (f"; {len(runs) - len(missing)} are finished" if len(missing) < len(runs) else "")
            )
            try:
                workers.run_all(missing, arguments.jobs, progress)
                cost = Cost(arguments.experiment, base, workdir / "cost")
                if hasattr(module, "cost") and not (cost.folder / "result.json").exists():
                    progress.say("timing the kinds of attention")
                    workers.run_all([cost], 1, progress)
            except KeyboardInterrupt:
                progress.close()
                progress.bar = None
                progress.say(INTERRUPTED)
                return 130
            finally:
                progress.close()
                progress.bar = None
        said, failures = report.write(workdir)
        print(said)
        return 1 if failures else 0


def measure_cases(arguments: argparse.Namespace, module: ModuleType, workdir: Path) -> int:
    """An experiment that trains no variants: measures what is missing and writes the report."""
    options = ("base", "seeds", "first_seed", "jobs", "steps", "set", "dry_run")
    given = [name.replace("_", "-") for name in options if getattr(arguments, name) != parser().get_default(name)]
    if given:
        raise UserError(f"{arguments.experiment!r} has no variants of a config: leave out --{' and --'.join(given)}")
    command_line.keep_freed_memory()
    with only_one(workdir):
        try:
            print(measurement.measure(module, workdir, report.command(sys.argv), arguments.report_only))
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr)
            return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description="Trains every variant of an experiment with every seed and writes a report. The same command again "
        "goes on where it stopped.",
        epilog=f"experiments: {', '.join(available())}",
        allow_abbrev=False,
    )
    p.add_argument("experiment", help="a file of experiments/ without .py, or the path of a file of that form")
    p.add_argument("--workdir", required=True, help="folder of the sweep: created, or resumed")
    p.add_argument("--base", help="config file that the variants change (default: the experiment's BASE)")
    p.add_argument("--seeds", type=_positive, default=3, help="number of seeds a variant (default: %(default)s)")
    p.add_argument("--first-seed", type=int, default=0, metavar="K", help="seeds count from here (default: 0)")
    p.add_argument("--jobs", type=_positive, default=2, help="runs at the same time, the cores shared out among them")
    p.add_argument("--steps", type=_positive, help="steps of each run, in place of the base's")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a key of the base to change, such as --set model.d_model=64; may be repeated",
    )  # fmt: skip
    p.add_argument(
        "--dry-run", "--dry_run", action="store_true",
        help="train nothing whole: say what each variant would cost, from a few timed steps",
    )  # fmt: skip
    p.add_argument("--report-only", action="store_true", help="train nothing, report what is finished")
    return p


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line; a `UserError` becomes one line on stderr and exit code 2."""
    arguments = parser().parse_args(argv)
    # Workers inherit these: variants and seeds share compiled programs, and several workers may share one accelerator.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    command_line.use_compilation_cache()
    try:
        return sweep(arguments)
    except UserError as error:
        command_line.fail(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
