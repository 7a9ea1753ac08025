"""The command line of `experiments.run`."""

import argparse
import math
from typing import NoReturn

from experiments.lab import cluster, tuning, workers
from experiments.lab.budgets import BUDGETS
from experiments.lab.looks import GROWTH
from experiments.lab.questions import available
from transformer import command_line

SEEDS = 3  # of a variant, where neither the experiment nor the command names more


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
    p.add_argument("--seeds", type=_positive, help=f"number of seeds a variant (default: the experiment's, or {SEEDS})")
    p.add_argument("--first-seed", type=_seed, default=0, metavar="K", help="seeds count from here (default: 0)")
    p.add_argument(
        "--jobs", type=_positive,
        help=f"runs at the same time, which share out the cores and GPUs (default: one a GPU, or {workers.JOBS} on a "
        "processor; all that slurm lets run)",
    )  # fmt: skip
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
        "included; bytes: of text; flops: of the training, by formula; seconds: of training, from pilot runs; default: "
        "%(default)s); the warm-up follows the steps",
    )  # fmt: skip
    p.add_argument(
        "--executor", choices=("local", "slurm"), default="local",
        help="local: processes of this machine; slurm: one job array, in a --workdir that all nodes "
        "see (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--submit", action="append", default=[], metavar="KEY=VALUE",
        help=f"an option of sbatch, such as --submit partition=gpu --submit gpus_per_node=1; may be repeated; time, in "
        f"minutes, is {cluster.MINUTES} unless given",
    )  # fmt: skip
    p.add_argument(
        "--tune", action="append", metavar="KEY",
        help=f"the key whose value each variant has for itself, of the lowest validation loss on a grid of factor "
        f"{tuning.FACTOR:g} (default: {tuning.RATE}, where variants differ in the model; none: all have the base's); "
        "with --trials KEY or KEY=LOW..HIGH, and it may be repeated",
    )  # fmt: skip
    p.add_argument(
        "--trials", type=_positive, metavar="N", help="tune by N trials of Optuna a variant, in place of a grid"
    )
    p.add_argument(
        "--until", type=_width, metavar="WIDTH",
        help="add seeds until each variant has its verdict, or an interval that reaches no further to either side than "
        "this, in the report's unit; looks are planned, and share out the 5 %% of false claims",
    )  # fmt: skip
    p.add_argument(
        "--most-seeds", type=_positive, metavar="N", help=f"where --until ends (default: {GROWTH} times as many)"
    )
    p.add_argument("--primary", metavar="METRIC", help="the metric of the verdicts, in place of the experiment's")
    p.add_argument("--matters", type=_width, metavar="SIZE", help="the smallest difference in it that matters")
    p.add_argument("--report-only", action="store_true", help="train nothing, report what is finished")
    return p


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _width(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2147483647")
    return int(text)
