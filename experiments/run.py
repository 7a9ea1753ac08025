"""python -m experiments.run positions_and_windows --workdir=DIR [--base=FILE] [--seeds=3] [--jobs=N] [--set KEY=VALUE]

Trains every variant of an experiment with every seed, and writes results.csv, report.md, report.html and figures/.
Variants that differ in the model have a learning rate of their own, tuned before (--tune). The same command again goes
on where it stopped: finished runs are kept, and so are those that diverged; unfinished and failed ones are tried again.
A run that a sweep beside this one has trained, by the same code on the same data, is taken from there.
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

from experiments.lab import apart, case_runs, cases, cluster, report, shared, tuning, workers
from experiments.lab.looks import grown, growth, look
from experiments.lab.options import SEEDS, parser
from experiments.lab.pilots import expect, pilot, table
from experiments.lab.questions import asked, load
from experiments.lab.results import outcome
from experiments.lab.single import Cost, Run
from experiments.lab.sweep import Execute, begun, claim, equal_budgets, missing, planned, train
from transformer import command_line
from transformer.config import to_dict
from transformer.errors import UserError
from transformer.paths import for_checkpoints
from transformer.training.lock import only_process_in

INTERRUPTED = "interrupted; the same command goes on from here, and --report-only reports what there is"


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line; a `UserError` becomes one line on stderr and exit code 2."""
    arguments = parser().parse_args(argv)
    # Workers inherit these: variants and seeds share compiled programs, and several workers may share one accelerator.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    command_line.use_compilation_cache()
    try:
        module, workdir = load(arguments.experiment), for_checkpoints(arguments.workdir, "--workdir")
        refuse(arguments, module)
        with only_process_in(workdir):
            if hasattr(module, "cases") and not case_runs.has_seeds(module):
                return measure_cases(arguments, module, workdir)
            return sweep(arguments, module, workdir)
    except UserError as error:
        command_line.fail(error)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or INTERRUPTED, file=sys.stderr)
        return os.EX_TEMPFAIL


def sweep(arguments: argparse.Namespace, module: ModuleType, workdir: Path) -> int:
    """Runs what is missing and writes the report; the exit code: 1 where a run failed, EX_TEMPFAIL where one has steps
    left because it was stopped."""
    question = case_runs.asked(module) if hasattr(module, "cases") else asked(module, arguments)
    count = arguments.seeds or getattr(module, "SEEDS", SEEDS)
    seeds = range(arguments.first_seed, arguments.first_seed + count)
    if set(seeds) & set(tuning.SEEDS):
        raise UserError(f"--first-seed {arguments.first_seed} gives seeds that are kept for tuning: take a smaller one")
    if arguments.report_only and not any((workdir / "runs").glob("*/seed*")):  # a report begins no sweep
        raise UserError(
            f"none of the {len(question.configs) * count} runs in {str(workdir)!r} has finished, nothing to report"
        )
    until = growth(arguments.until, arguments.most_seeds, count)
    execute = executor(arguments, workdir)
    may = None if arguments.report_only else execute
    old = begun(workdir, Path(arguments.experiment).stem, question)
    configs, budget = equal_budgets(
        arguments.experiment, question.configs, module.REFERENCE, arguments.budget, workdir, old, may
    )
    given = ["none"] if hasattr(module, "cases") else arguments.tune
    keys = tuning.keys_of(module, configs, question.variants, given, arguments.trials)
    search = tuning.Tuning(arguments.experiment, configs, question.variants, keys, workdir, arguments.trials)
    if old:
        tuned = search.settled(old, arguments.report_only)
    else:
        tuned = search.choose(may) if keys and not arguments.dry_run else None
    configs, variants = search.applied(tuned)
    plan = {
        "experiment": Path(arguments.experiment).stem,
        "docstring": module.__doc__,
        "base": question.origin,
        "settings": question.settings,
        "command": report.command(sys.argv),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": to_dict(question.base),
        "budget": budget,
        "tuning": tuned,
        "variants": variants,
        "reference": module.REFERENCE,
        "primary": question.primary,
        "matters": question.matters,
        "main_metrics": question.metrics,
        "seeds": list(seeds),
        "until": until,
        "looks": [],
    }
    how = "report" if arguments.report_only else "price" if arguments.dry_run else "train"
    plan = claim(workdir, plan, configs, old, how)
    kind = case_runs.CaseRun if hasattr(module, "cases") else None
    while True:
        runs = planned(arguments.experiment, configs, variants, plan["seeds"], workdir, kind)
        if arguments.dry_run:
            return dry_run(
                arguments, workdir, search, [*missing(runs), *(search.first() if keys and not tuned else [])]
            )
        if not arguments.report_only:
            cost = Cost(arguments.experiment, question.base, workdir / "cost")
            wanted = hasattr(module, "cost") and outcome(cost.folder, ("rows",))[0] is None
            train(runs, workdir, execute, cost if wanted else None)
        looked = look(workdir)
        said, failures = report.write(workdir, getattr(module, "findings", None))
        if arguments.report_only or not (more := grown(looked, workdir)):
            break
        plan = more
    print(said)
    if failures or arguments.report_only:
        return int(failures > 0)
    return os.EX_TEMPFAIL if missing(runs) else 0


def dry_run(arguments: argparse.Namespace, workdir: Path, search: tuning.Tuning, runs: Sequence[Run]) -> int:
    """Says what the runs would cost; the exit code: 1 where a variant could not be piloted."""
    left = [run for run in shared.offered(runs, workdir) if not run.candidates]
    expected = expect(left, pilot(left, executor(arguments, workdir), workdir))
    most = len(left) or 1 if arguments.executor == "slurm" else len(workers.gpus()) or workers.JOBS
    print(table(expected, len(left), arguments.jobs or most))
    if trials := sum(run.trial for run in left):
        print(f"{trials} of the runs tune {search.key}; a grid grows where the best is at its edge")
    return 0 if len(expected) == len({run.variant for run in left}) else 1


def executor(arguments: argparse.Namespace, workdir: Path) -> Execute:
    """Where the tasks are done. UserError: options of SLURM for this machine's own processes, or unknown ones."""
    if arguments.executor == "local":
        if arguments.submit:
            raise UserError(f"--submit {arguments.submit[0]!r} is for --executor=slurm: leave it out, or add that")
        return lambda tasks, watcher: workers.run_all(tasks, arguments.jobs, watcher)
    options = dict(cluster.parse_option(text) for text in arguments.submit)
    return lambda tasks, watcher: cluster.run_all(tasks, arguments.jobs, watcher, workdir / "slurm", options)


def refuse(arguments: argparse.Namespace, module: ModuleType) -> None:
    """UserError: options that an experiment of cases has no use for."""
    if not hasattr(module, "cases"):
        return
    options = "base steps set budget dry_run tune trials primary matters".split()
    options += [] if case_runs.has_seeds(module) else "seeds first_seed jobs executor submit until most_seeds".split()
    given = [name.replace("_", "-") for name in options if getattr(arguments, name) != parser().get_default(name)]
    if given:
        why = ", and its times would be spoilt by runs side by side" if {"jobs", "executor"} & set(given) else ""
        raise UserError(
            f"{arguments.experiment!r} has no variants of a config{why}: leave out --{' and --'.join(given)}"
        )


def measure_cases(arguments: argparse.Namespace, module: ModuleType, workdir: Path) -> int:
    """An experiment of cases that are measured one after another: what is missing, and the report."""
    command_line.keep_freed_memory()
    if hasattr(module, "MOST_SECONDS"):
        said, failures = apart.measure(
            module, arguments.experiment, workdir, report.command(sys.argv), arguments.report_only
        )
        print(said)
        return int(bool(failures))
    print(cases.measure(module, workdir, report.command(sys.argv), arguments.report_only))
    return 0


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # as Ctrl-C: the runs save and stop
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
