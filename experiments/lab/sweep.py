"""A sweep and its folder: which sweep it is, its runs, and the steps that its budget buys them.

sweep.json says what the sweep is; before its first run (as after --dry-run) it binds nobody.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.lab import cluster
from experiments.lab.budgets import equalise
from experiments.lab.pilots import step_seconds
from experiments.lab.progress import Progress
from experiments.lab.results import outcome, read_plan
from experiments.lab.single import Cost, Run
from experiments.lab.workers import write_json
from transformer.config import Config, differences, from_stored, is_runtime, override
from transformer.errors import UserError

Execute = Callable[[Sequence[Any], Any], None]  # does tasks, and tells a watcher

GOING_ON = (
    "the jobs go on: `squeue --me` shows them, `scancel {jobs}` ends them; the same command waits for them, and "
    "--report-only reports what there is"
)
STEPS = {"kind": "steps"}  # the budget of a sweep that names none


def held(workdir: Path) -> dict[str, Any] | None:
    """The sweep.json of a sweep that has begun."""
    path = workdir / "sweep.json"
    return read_plan(path) if path.exists() and any((workdir / "runs").glob("*/seed*")) else None


def claim(workdir: Path, plan: dict[str, Any], configs: dict[str, Config], base: Config) -> dict[str, Any]:
    """Writes sweep.json, or joins the sweep that is there. UserError: it is another one."""
    if old := held(workdir):
        if old["experiment"] != plan["experiment"]:
            raise UserError(
                f"{str(workdir)!r} holds the experiment {old['experiment']!r}, not {plan['experiment']!r}: choose "
                "another --workdir"
            )
        if changed := _differing(old["config"], base):
            listed = "; ".join(f"{key} was {a!r} and is now {b!r}" for key, (a, b) in changed.items())
            raise UserError(
                f"{str(workdir)!r} holds a sweep of another base config ({listed}): choose another --workdir"
            )
        plan = plan | {"created": old["created"], "seeds": sorted({*old["seeds"], *plan["seeds"]})}
    for variant, config in configs.items():
        for folder in sorted((workdir / "runs" / variant).glob("seed*")):
            result, _ = outcome(folder)
            if result and _differing(result["config"], dataclasses.replace(config, seed=result["seed"])):
                raise UserError(
                    f"{str(folder)!r} was trained as another variant than {variant!r} is now: choose another "
                    "--workdir, or delete that folder to train it again"
                )
    write_json(workdir / "sweep.json", plan)
    return plan


def _differing(stored: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """The keys that may not differ within a sweep, and do: key -> (stored, now). They are what a run is, and its
    steps."""
    changed = differences(from_stored(stored), config)
    return {key: pair for key, pair in changed.items() if key == "steps" or not is_runtime(key)}


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
    experiment: str,
    configs: dict[str, Config],
    reference: str,
    budget: str,
    workdir: Path,
    execute: Execute | None,
) -> tuple[dict[str, Config], dict[str, Any]]:
    """The variants with the steps of the budget, and what sweep.json keeps of it.

    Time is measured once, and then read from sweep.json, so that a resumed sweep has the same steps.

    Args:
        experiment: as `questions.load` finds it.
        configs: variant -> its config.
        reference: the variant whose steps set the budget.
        budget: a row of BUDGETS.
        workdir: of the sweep.
        execute: does the pilot runs; None where nothing may be measured.

    Raises:
        UserError: the sweep has begun with another budget or of other variants, or a variant could not be timed.
    """
    old = held(workdir)
    kept = (old or {}).get("budget", STEPS)
    if old and kept["kind"] != budget:
        raise UserError(
            f"{str(workdir)!r} holds a sweep of equal {kept['kind']}, not of equal {budget}: use "
            f"--budget={kept['kind']}, or choose another --workdir"
        )
    if budget != "seconds":
        configs = equalise(configs, reference, budget)
    elif old and set(kept["steps"]) != set(configs):
        raise UserError(f"{str(workdir)!r} holds times of other variants than these: choose another --workdir")
    elif old:
        configs = {name: override(config, {"steps": kept["steps"][name]}) for name, config in configs.items()}
    elif execute is None:
        raise UserError(f"{str(workdir)!r} holds no sweep of equal seconds: leave out --report-only to measure them")
    else:
        print("timing each variant for a budget of equal seconds", file=sys.stderr, flush=True)
        variants: dict[str, Any] = {name: {} for name in configs}
        seconds = step_seconds(planned(experiment, configs, variants, [0], workdir), execute, workdir)
        if lost := set(configs) - set(seconds):
            raise UserError(
                f"no time could be taken of {', '.join(sorted(lost))}: they failed, or have too few --steps: mend "
                "that, or use another --budget"
            )
        configs = equalise(configs, reference, budget, seconds)
    return configs, {"kind": budget, "steps": {name: config.steps for name, config in configs.items()}}


def train(runs: Sequence[Run], missing: Sequence[Run], cost: Cost | None, execute: Execute) -> None:
    """Does the missing runs and the measurement of cost, and tells of them.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it; with words of its own where jobs of a cluster go on without it.
    """
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
    except KeyboardInterrupt as interrupt:
        if jobs := cluster.queued([*missing, *([cost] if cost else [])]):
            named = " ".join(dict.fromkeys(job.split("_")[0] for job in jobs))
            raise KeyboardInterrupt(GOING_ON.format(jobs=named)) from interrupt
        raise
    finally:
        progress.close()
