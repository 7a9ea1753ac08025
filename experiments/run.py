"""python -m experiments.run positions_and_windows --workdir=DIR [--base=FILE] [--seeds=3] [--jobs=2] [--set KEY=VALUE]

Trains every variant of an experiment with every seed, and writes results.csv, report.md, report.html and figures/.
The same command again goes on where it stopped: finished runs are kept, unfinished and failed ones are tried again.
"""

import argparse
import dataclasses
import datetime
import fcntl
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from experiments.lab import cluster, measurement, report, workers
from experiments.lab.budgets import BUDGETS, equalise
from experiments.lab.definitions import FOLDER, available, build, load, parse_setting
from experiments.lab.measures import main_metrics
from experiments.lab.plan import expect, pilot, step_seconds, table
from experiments.lab.progress import Progress
from experiments.lab.results import outcome, read_plan
from experiments.lab.single import Cost, Run
from transformer import command_line
from transformer.config import Config, differences, from_stored, is_runtime, load_file, override, to_dict
from transformer.errors import UserError

GOING_ON = (
    "the jobs go on: `squeue --me` shows them, `scancel {jobs}` ends them; the same command waits for them, and "
    "--report-only reports what there is"
)
INTERRUPTED = "interrupted; the same command goes on from here, and --report-only reports what there is"
STEPS = {"kind": "steps"}  # the budget of a sweep that names none


def held(workdir: Path) -> dict[str, Any] | None:
    """The sweep.json of a sweep that has begun: before its first run (as after --dry-run) it binds nobody."""
    path = workdir / "sweep.json"
    return read_plan(path) if path.exists() and any((workdir / "runs").glob("*/seed*")) else None


def claim(workdir: Path, sweep: dict[str, Any], configs: dict[str, Config], base: Config) -> dict[str, Any]:
    """Writes sweep.json, or joins the sweep that is there. UserError: it is another one."""
    if old := held(workdir):
        if old["experiment"] != sweep["experiment"]:
            raise UserError(
                f"{str(workdir)!r} holds the experiment {old['experiment']!r}, not {sweep['experiment']!r}: choose "
                "another --workdir"
            )
        if changed := differing(old["config"], base):
            listed = "; ".join(f"{key} was {a!r} and is now {b!r}" for key, (a, b) in changed.items())
            raise UserError(
                f"{str(workdir)!r} holds a sweep of another base config ({listed}): choose another --workdir"
            )
        sweep = sweep | {"created": old["created"], "seeds": sorted({*old["seeds"], *sweep["seeds"]})}
    for variant, config in configs.items():
        for folder in sorted((workdir / "runs" / variant).glob("seed*")):
            result, _ = outcome(folder)
            if result is None:
                continue
            if differing(result["config"], dataclasses.replace(config, seed=result["seed"])):
                raise UserError(
                    f"{str(folder)!r} was trained as another variant than {variant!r} is now: choose another "
                    "--workdir, or delete that folder to train it again"
                )
    workdir.mkdir(parents=True, exist_ok=True)
    workers.write_json(workdir / "sweep.json", sweep)
    return sweep


def differing(stored: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """The keys that may not differ within a sweep, and do: key -> (stored, now). They are what a run is, and its
    steps."""
    changed = differences(from_stored(stored), config)
    return {key: pair for key, pair in changed.items() if key == "steps" or not is_runtime(key)}


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
    settings = dict(getattr(module, "SETTINGS", {}) if arguments.base is None else {})
    settings |= dict(parse_setting(text) for text in arguments.set)
    if arguments.steps is not None:
        settings["steps"] = arguments.steps
    base = override(base, settings)
    configs = build(module, base)
    execute = executor(arguments, workdir)
    with only_one(workdir):
        configs, budget = equal_budgets(arguments, module, configs, workdir, execute)
        plan = {
            "experiment": Path(arguments.experiment).stem,
            "docstring": module.__doc__,
            "base": base_file,
            "settings": settings,
            "command": report.command(sys.argv),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "config": to_dict(base),
            "budget": budget,
            "variants": module.variants(base),
            "reference": module.REFERENCE,
            "main_metrics": getattr(module, "MAIN_METRICS", None) or main_metrics(base),
            "seeds": list(range(arguments.first_seed, arguments.first_seed + arguments.seeds)),
        }
        plan = claim(workdir, plan, configs, base)
        runs = planned(arguments.experiment, configs, plan["variants"], plan["seeds"], workdir)
        missing = [run for run in runs if outcome(run.folder)[0] is None]
        if arguments.dry_run:
            expected = expect(missing, pilot(missing, execute, workdir))
            print(table(expected, len(missing), arguments.jobs))
            return 0 if len(expected) == len({run.variant for run in missing}) else 1
        if not arguments.report_only:
            cost = Cost(arguments.experiment, base, workdir / "cost")
            wanted = hasattr(module, "cost") and outcome(cost.folder, ("rows",))[0] is None
            if not train(runs, missing, cost if wanted else None, execute):
                return 130
        said, failures = report.write(workdir)
        print(said)
        return 1 if failures else 0


Execute = Callable[[Sequence[Any], Any], None]  # does tasks, and tells a watcher


def executor(arguments: argparse.Namespace, workdir: Path) -> Execute:
    """Where the tasks are done. UserError: options of SLURM for this machine's own processes, or unknown ones."""
    if arguments.executor == "local":
        if arguments.submit:
            raise UserError(f"--submit {arguments.submit[0]!r} is for --executor=slurm: leave it out, or add that")
        return lambda tasks, watcher: workers.run_all(tasks, arguments.jobs, watcher)
    options = dict(cluster.parse_option(text) for text in arguments.submit)
    return lambda tasks, watcher: cluster.run_all(tasks, arguments.jobs, watcher, workdir / "slurm", options)


def planned(
    experiment: str, configs: dict[str, Config], variants: dict[str, Any], seeds: Sequence[int], workdir: Path
) -> list[Run]:
    """The runs, all variants of a seed before the next seed, so that a sweep that is stopped stays balanced."""
    return [
        Run(
            experiment,
            variant,
            seed,
            dataclasses.replace(config, seed=seed),
            variants[variant],
            workdir / "runs" / variant / f"seed{seed}",
        )
        for seed in seeds
        for variant, config in configs.items()
    ]


def equal_budgets(
    arguments: argparse.Namespace, module: ModuleType, configs: dict[str, Config], workdir: Path, execute: Execute
) -> tuple[dict[str, Config], dict[str, Any]]:
    """The variants with the steps of the budget, and what sweep.json keeps of it.

    Time is measured once, and then read from sweep.json, so that a resumed sweep has the same steps.

    Raises:
        UserError: the sweep has begun with another budget or of other variants, or a variant could not be timed.
    """
    old, budget = held(workdir), arguments.budget
    kept = (old or {}).get("budget", STEPS)
    if old and kept["kind"] != budget:
        raise UserError(
            f"{str(workdir)!r} holds a sweep of equal {kept['kind']}, not of equal {budget}: use "
            f"--budget={kept['kind']}, or choose another --workdir"
        )
    if budget != "seconds":
        configs = equalise(configs, module.REFERENCE, budget)
    elif old and set(kept["steps"]) != set(configs):
        raise UserError(f"{str(workdir)!r} holds times of other variants than these: choose another --workdir")
    elif old:
        configs = {name: override(config, {"steps": kept["steps"][name]}) for name, config in configs.items()}
    elif arguments.report_only:
        raise UserError(f"{str(workdir)!r} holds no sweep of equal seconds: leave out --report-only to measure them")
    else:
        print("timing each variant for a budget of equal seconds", file=sys.stderr, flush=True)
        variants: dict[str, Any] = {name: {} for name in configs}
        runs = planned(arguments.experiment, configs, variants, [0], workdir)
        seconds = step_seconds(runs, execute, workdir)
        if lost := set(configs) - set(seconds):
            raise UserError(
                f"no time could be taken of {', '.join(sorted(lost))}: they failed, or have too few --steps: mend "
                "that, or use another --budget"
            )
        configs = equalise(configs, module.REFERENCE, budget, seconds)
    return configs, {"kind": budget, "steps": {name: config.steps for name, config in configs.items()}}


def train(runs: Sequence[Run], missing: Sequence[Run], cost: Cost | None, execute: Execute) -> bool:
    """Does the missing runs and the measurement of cost, and tells of them; False where Ctrl-C ended it."""
    progress = Progress(runs, missing)
    steps = sorted({run.config.steps for run in runs})
    progress.say(
        f"{len(runs)} runs of {' to '.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} steps: "
        f"{len({run.variant for run in runs})} variants, seeds {str(sorted({run.seed for run in runs}))[1:-1]}"
        + (f"; {len(runs) - len(missing)} are finished" if len(missing) < len(runs) else "")
    )
    try:
        execute(missing, progress)
        if cost is not None:
            progress.say("timing the kinds of attention")
            execute([cost], progress)
    except KeyboardInterrupt:
        progress.close()
        progress.bar = None
        if jobs := cluster.queued([*missing, *([cost] if cost else [])]):
            progress.say(GOING_ON.format(jobs=" ".join(dict.fromkeys(job.split("_")[0] for job in jobs))))
        else:
            progress.say(INTERRUPTED)
        return False
    finally:
        progress.close()
        progress.bar = None
    return True


def measure_cases(arguments: argparse.Namespace, module: ModuleType, workdir: Path) -> int:
    """An experiment that trains no variants: measures what is missing and writes the report."""
    options = ("base", "seeds", "first_seed", "jobs", "steps", "set", "budget", "executor", "submit", "dry_run")
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
    p.add_argument(
        "--budget", choices=BUDGETS, default="steps",
        help="what all variants spend as much of as the reference: their steps follow (tokens: positions, padding "
        "included; flops: of the training, by formula; seconds: of training, from pilot runs; default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--executor", choices=("local", "slurm"), default="local",
        help="local: processes of this machine; slurm: one job array, --jobs of it at a time, in a --workdir that all "
        "nodes see (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--submit", action="append", default=[], metavar="KEY=VALUE",
        help=f"an option of sbatch, such as --submit partition=gpu --submit gpus_per_node=1; may be repeated; time, in "
        f"minutes, is {cluster.MINUTES} unless given",
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
    except KeyboardInterrupt:  # amid pilots
        print(INTERRUPTED, file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
