"""A sweep and its folder: which sweep it is, its runs, and the steps that its budget buys them.

sweep.json says what the sweep is; before its first run (as after --dry-run) it binds nobody.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.lab import cluster
from experiments.lab.budgets import MEASURED, equalise, with_steps
from experiments.lab.pilots import step_prices
from experiments.lab.progress import Progress
from experiments.lab.questions import Question
from experiments.lab.results import outcome, read_plan
from experiments.lab.shared import identity, offered
from experiments.lab.single import Cost, Run
from experiments.lab.workers import write_json
from transformer.config import Config, differences, from_stored, is_runtime
from transformer.errors import UserError

Execute = Callable[[Sequence[Any], Any], None]  # does tasks, and tells a watcher

GOING_ON = (
    "the jobs go on: `squeue --me` shows them, `scancel {jobs}` ends them; the same command waits for them, and "
    "--report-only reports what there is"
)


def begun(workdir: Path, experiment: str, question: Question) -> dict[str, Any] | None:
    """The sweep.json of the sweep that has begun in a workdir. UserError: it asks something else."""
    path = workdir / "sweep.json"
    if not path.exists() or not any((workdir / "runs").glob("*/seed*")):
        return None
    old = read_plan(path)
    if old["experiment"] != experiment:
        raise UserError(
            f"{str(workdir)!r} holds the experiment {old['experiment']!r}, not {experiment!r}: choose another --workdir"
        )
    if old["reference"] != question.reference or set(old["variants"]) - set(question.variants):
        raise UserError(
            f"{str(workdir)!r} holds a sweep of other variants than these, or with another reference: these are named "
            "before, so choose another --workdir"
        )
    if (old["primary"], old["matters"]) != (question.primary, question.matters):
        raise UserError(
            f"{str(workdir)!r} holds a sweep that is judged by {old['primary']}, of which {old['matters']:g} matters, "
            f"not by {question.primary} and {question.matters:g}: these are named before, so choose another --workdir"
        )
    if changed := _differing(old["config"], question.base):
        listed = "; ".join(f"{key} was {a!r} and is now {b!r}" for key, (a, b) in changed.items())
        raise UserError(f"{str(workdir)!r} holds a sweep of another base config ({listed}): choose another --workdir")
    return old


def claim(
    workdir: Path, plan: dict[str, Any], configs: dict[str, Config], old: dict[str, Any] | None, how: str = "train"
) -> dict[str, Any]:
    """Writes sweep.json, joined with that of the sweep that has begun; to "report" that one, or to "price" more seeds,
    changes nothing of it. UserError: a run there is another one."""
    if old:
        if plan["until"] and old.get("until") and plan["until"] != old["until"]:
            raise UserError(
                f"{str(workdir)!r} grows until {old['until']['width']:g} with at most {old['until']['most']} seeds: "
                "its looks are planned for that, so give the same --until and --most-seeds, or choose another --workdir"
            )
        seeds = sorted({*old["seeds"], *plan["seeds"]})
        kept = {"until": plan["until"] or old.get("until"), "looks": old.get("looks", [])}
        plan = plan | kept | {"created": old["created"], "seeds": seeds}
        plan = old if how == "report" else plan
    for variant, config in configs.items():
        check_runs((workdir / "runs" / variant).glob("seed*"), variant, config)
    if not old or how == "train":
        write_json(workdir / "sweep.json", plan)
    return plan


def check_runs(folders: Iterable[Path], variant: str, config: Config) -> None:
    """UserError: a finished run, in one of the folders, was trained by another config, but for its seed."""
    for folder in sorted(folders):
        result, _ = outcome(folder)
        if result and _differing(result["config"], dataclasses.replace(config, seed=result["seed"])):
            raise UserError(
                f"{str(folder)!r} was trained as another variant than {variant!r} is now: choose another --workdir, or "
                "delete that folder to train it again"
            )


def _differing(stored: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """The keys that may not differ within a sweep, and do: key -> (stored, now). They are what a run is, and its
    steps."""
    changed = differences(from_stored(stored), config)
    return {key: pair for key, pair in changed.items() if key == "steps" or not is_runtime(key)}


def planned(
    experiment: str, configs: dict[str, Config], variants: dict[str, Any], seeds: Sequence[int], workdir: Path,
    kind: type[Run] | None = None,
) -> list[Run]:  # fmt: skip
    """The runs, all variants of a seed before the next seed, so that a sweep that is stopped stays balanced."""
    return [
        (kind or Run)(experiment, variant, seed, dataclasses.replace(config, seed=seed), variants[variant],
            workdir / "runs" / variant / f"seed{seed}")
        for seed in seeds
        for variant, config in configs.items()
    ]  # fmt: skip


def missing(runs: Sequence[Run]) -> list[Run]:
    """The runs without a result; a run that has diverged is one, and is not tried again."""
    return [run for run in runs if outcome(run.folder)[0] is None and not run.diverged]


def equal_budgets(
    experiment: str, configs: dict[str, Config], reference: str, budget: str, workdir: Path,
    old: dict[str, Any] | None, execute: Execute | None,
) -> tuple[dict[str, Config], dict[str, Any]]:  # fmt: skip
    """The variants with the steps of the budget, and what sweep.json keeps of it.

    What has to be measured is measured once, and then read from sweep.json, so that a resumed sweep has the same steps.

    Args:
        experiment: as `questions.load` finds it.
        configs: variant -> its config.
        reference: the variant whose steps set the budget.
        budget: a row of BUDGETS.
        workdir: of the sweep.
        old: the sweep that has `begun`.
        execute: does the pilot runs; None where nothing may be measured.

    Raises:
        UserError: the sweep has begun with another budget or of other variants, or a variant could not be measured.
    """
    kept = (old or {}).get("budget", {"kind": "steps"})
    if old and kept["kind"] != budget:
        raise UserError(
            f"{str(workdir)!r} holds a sweep of equal {kept['kind']}, not of equal {budget}: use "
            f"--budget={kept['kind']}, or choose another --workdir"
        )
    if budget not in MEASURED:
        configs = equalise(configs, reference, budget)
    elif old and set(kept["steps"]) != set(configs):
        raise UserError(f"{str(workdir)!r} holds {budget} of other variants than these: choose another --workdir")
    elif old:
        configs = {name: with_steps(config, kept["steps"][name]) for name, config in configs.items()}
    elif execute is None:
        raise UserError(f"{str(workdir)!r} holds no sweep of equal {budget}: leave out --report-only to measure them")
    elif (kept := _measured(workdir, budget, configs)) is not None:
        configs = {name: with_steps(config, kept[name]) for name, config in configs.items()}
    else:
        print(f"measuring the steps of each variant for a budget of equal {budget}", file=sys.stderr, flush=True)
        runs = planned(experiment, configs, {name: {} for name in configs}, [0], workdir)
        prices = step_prices(runs, execute, workdir, budget)
        if lost := set(configs) - set(prices):
            raise UserError(
                f"no {budget} a step could be measured of {', '.join(sorted(lost))}: they failed, or have too few "
                "--steps: mend that, or use another --budget"
            )
        of = {name: identity(config) for name, config in configs.items()}
        configs = equalise(configs, reference, budget, prices)
        steps = {name: config.steps for name, config in configs.items()}
        write_json(
            workdir / "budget.json", {"kind": budget, "of": of, "steps": steps}
        )  # a tuning comes before the sweep
    return configs, {"kind": budget, "steps": {name: config.steps for name, config in configs.items()}}


def _measured(workdir: Path, budget: str, configs: dict[str, Config]) -> dict[str, int] | None:
    """The steps that an earlier command measured for these variants, before it was stopped in their tuning."""
    path = workdir / "budget.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = kept.get("kind") == budget and kept["of"] == {name: identity(config) for name, config in configs.items()}
    return kept["steps"] if same else None


def train(runs: Sequence[Run], workdir: Path, execute: Execute, cost: Cost | None = None, what: str = "") -> None:
    """Does the missing runs and the measurement of cost, and tells of them; `what` they are, if not those of the sweep.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it; with words of its own where jobs of a cluster go on without it.
    """
    left, gone = offered(missing(runs), workdir), sum(run.diverged for run in runs)
    progress = Progress(runs, left)
    steps = sorted({run.config.steps for run in runs})
    progress.say(
        f"{what}{len(runs)} runs of {' to '.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} steps: "
        f"{len({run.variant for run in runs})} variants, seeds {str(sorted({run.seed for run in runs}))[1:-1]}"
        + (f"; {done} are finished" if (done := len(runs) - len(left) - gone) else "")
        + (f"; {gone} diverged, and would again: delete a run's folder to train it anew" if gone else "")
    )
    try:
        execute(left, progress)
        if cost is not None:
            progress.say("timing the kinds of attention")
            execute([cost], progress)
    except KeyboardInterrupt as interrupt:
        if jobs := cluster.queued([*left, *([cost] if cost else [])]):
            named = " ".join(dict.fromkeys(job.split("_")[0] for job in jobs))
            raise KeyboardInterrupt(GOING_ON.format(jobs=named)) from interrupt
        raise
    finally:
        progress.close()
