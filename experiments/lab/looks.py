"""Looks at a sweep: each report with verdicts is one, and is recorded with what it spends of the 5 % of false claims.

Seeds that are added until something is significant would make false claims in every sixth sweep. So each look has its
part of them, planned (`--until`) or not, and its verdicts hold at what is left (`statistics.next_look`).
"""

from pathlib import Path
from typing import Any

from experiments.lab.measures import describe
from experiments.lab.results import Sweep, read
from experiments.lab.statistics import next_look
from experiments.lab.verdicts import judge
from experiments.lab.workers import write_json
from transformer.errors import UserError

GROWTH = 4  # times as many seeds at most, with --until


def growth(until: float | None, most: int | None, seeds: int) -> dict[str, Any] | None:
    """What sweep.json keeps of a sweep that grows: the width in the report's unit, and the most seeds.

    UserError: one without the other, or fewer seeds at most than at first.
    """
    if until is None:
        if most is not None:
            raise UserError(f"--most-seeds {most} is for a sweep that grows: add --until WIDTH, or leave it out")
        return None
    most = most or GROWTH * seeds
    if most < seeds:
        raise UserError(f"--most-seeds {most} is less than the {seeds} seeds that the sweep begins with: take more")
    return {"width": until, "most": most}


def look(workdir: Path) -> Sweep:
    """The sweep, and in sweep.json the look that a report of it is: of one that has ended, with other seeds than the
    last look had."""
    sweep = read(workdir)
    seeds, earlier = tuple(sweep.plan["seeds"]), sweep.looks
    if sweep.ended and sweep.results and not (earlier and earlier[-1].seeds == seeds):
        until = sweep.plan.get("until")
        new = next_look(earlier, seeds, until["most"] if until else None)
        sweep.plan["looks"] = [{"seeds": list(each.seeds), "alpha": each.alpha} for each in (*earlier, new)]
        write_json(workdir / "sweep.json", sweep.plan)
    return sweep


def grown(sweep: Sweep, workdir: Path) -> dict[str, Any] | None:
    """The plan with one more seed, also in sweep.json; None where the sweep does not grow, or has all it wants."""
    until, seeds = sweep.plan.get("until"), sweep.plan["seeds"]
    if not until or not sweep.ended or len(seeds) >= until["most"] or settled(sweep, until["width"]):
        return None
    plan = sweep.plan | {"seeds": [*seeds, max(seeds) + 1]}
    write_json(workdir / "sweep.json", plan)
    return plan


def settled(sweep: Sweep, width: float) -> bool:
    """Whether every variant has its verdict, or an interval that reaches no further than `width` to either side."""
    scale = describe(sweep.primary).scale
    found = judge(sweep, sweep.primary).values()
    return all(
        one.verdict in ("better", "worse", "equivalent")
        or (
            one.difference.low is not None
            and one.difference.high is not None
            and (one.difference.high - one.difference.low) * scale / 2 <= width
        )
        for one in found
    )
