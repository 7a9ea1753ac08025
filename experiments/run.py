"""python -m experiments.run positions_and_windows --workdir=DIR [--base=FILE] [--seeds=3] [--jobs=2] [--set KEY=VALUE]

Trains every variant of an experiment with every seed, and writes results.csv, report.md, report.html and figures/.
The same command again goes on where it stopped: finished runs are kept, unfinished and failed ones are tried again.
Exit codes: 0, all runs are finished; 1, some failed; 2, a mistake to mend; 75 (EX_TEMPFAIL), it was stopped by Ctrl-C,
SIGTERM, SIGUSR1 or SIGUSR2, or some of its runs were: the same command goes on.
"""

import argparse
import datetime
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from experiments.lab import apart, cases, cluster, report, workers
from experiments.lab.budgets import BUDGETS
from experiments.lab.measures import main_metrics
from experiments.lab.pilots import expect, pilot, table
from experiments.lab.questions import FOLDER, available, build, load, parse_setting, with_plugins
from experiments.lab.results import outcome
from experiments.lab.single import Cost
from experiments.lab.sweep import Execute, claim, equal_budgets, planned, train
from transformer import command_line
from transformer.config import load_file, override, to_dict
from transformer.errors import UserError
from transformer.paths import expanded, for_checkpoints
from transformer.training.lock import only_process_in

INTERRUPTED = "interrupted; the same command goes on from here, and --report-only reports what there is"


def sweep(arguments: argparse.Namespace) -> int:
    """Runs what is missing and writes the report; the exit code: 1 where a run failed, EX_TEMPFAIL where one has steps
    left because it was stopped."""
    module, workdir = load(arguments.experiment), for_checkpoints(arguments.workdir, "--workdir")
    if hasattr(module, "cases"):
        return measure_cases(arguments, module, workdir)
    base_file = expanded(arguments.base or module.BASE, "--base")
    base = load_file(FOLDER.parent / base_file if not Path(base_file).exists() else base_file)
    settings = dict(getattr(module, "SETTINGS", {}) if arguments.base is None else {})
    settings |= dict(parse_setting(text) for text in arguments.set)
    if arguments.steps is not None:
        settings["steps"] = arguments.steps
    base = override(with_plugins(module, base), settings)
    configs = build(module, base)
    execute = executor(arguments, workdir)
    with only_process_in(workdir):
        configs, budget = equal_budgets(
            arguments.experiment, configs, module.REFERENCE, arguments.budget, workdir,
            None if arguments.report_only else execute,
        )  # fmt: skip
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
        if arguments.report_only and not any((workdir / "runs").glob("*/seed*")):  # a report begins no sweep
            count = len(configs) * arguments.seeds
            raise UserError(f"none of the {count} runs in {str(workdir)!r} has finished, nothing to report")
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
            train(runs, missing, cost if wanted else None, execute)
        said, failures = report.write(workdir)
        print(said)
        if failures or arguments.report_only:
            return int(failures > 0)
        return 0 if all(outcome(run.folder)[0] for run in runs) else os.EX_TEMPFAIL


def executor(arguments: argparse.Namespace, workdir: Path) -> Execute:
    """Where the tasks are done. UserError: options of SLURM for this machine's own processes, or unknown ones."""
    if arguments.executor == "local":
        if arguments.submit:
            raise UserError(f"--submit {arguments.submit[0]!r} is for --executor=slurm: leave it out, or add that")
        return lambda tasks, watcher: workers.run_all(tasks, arguments.jobs, watcher)
    options = dict(cluster.parse_option(text) for text in arguments.submit)
    return lambda tasks, watcher: cluster.run_all(tasks, arguments.jobs, watcher, workdir / "slurm", options)


def measure_cases(arguments: argparse.Namespace, module: ModuleType, workdir: Path) -> int:
    """An experiment that trains no variants: measures what is missing and writes the report."""
    options = ("base", "seeds", "first_seed", "jobs", "steps", "set", "budget", "executor", "submit", "dry_run")
    given = [name.replace("_", "-") for name in options if getattr(arguments, name) != parser().get_default(name)]
    if given:
        raise UserError(f"{arguments.experiment!r} has no variants of a config: leave out --{' and --'.join(given)}")
    command_line.keep_freed_memory()
    with only_process_in(workdir):
        if hasattr(module, "MOST_SECONDS"):
            said, failures = apart.measure(
                module, arguments.experiment, workdir, report.command(sys.argv), arguments.report_only
            )
            print(said)
            return int(bool(failures))
        print(cases.measure(module, workdir, report.command(sys.argv), arguments.report_only))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        command_line.fail(f"{message}: see python -m experiments.run --help")


def parser() -> argparse.ArgumentParser:
    """The command line; a mistake in it is one line on stderr."""
    p = _Parser(
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
    p.add_argument("--first-seed", type=_seed, default=0, metavar="K", help="seeds count from here (default: 0)")
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


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2147483647")
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
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or INTERRUPTED, file=sys.stderr)
        return os.EX_TEMPFAIL


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # as Ctrl-C: the runs save and stop
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
