"""How often is the lab wrong, and what can it see?

Hypothesis: among sweeps of one config against itself at most one in twenty claims any difference, and a difference that
is planted is found as often as the lab promises.

Source: A/A tests, Kohavi et al. 2009, "Controlled experiments on the web" (doi 10.1007/s10618-008-0114-1). Every run is
real, of one config with seeds of its own; a sweep is six variants of a few runs each, drawn from all of them without
replacement. What is planted is added to one variant, in spreads of a paired difference.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.measures import describe
from experiments.lab.render import Block, Table
from experiments.lab.results import Sweep
from experiments.lab.statistics import Difference, differences, next_look
from experiments.lab.verdicts import on_scale
from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "same"
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter
TUNE = None  # nothing is compared
SEEDS = 40

SWEEPS, VARIANTS = 2000, 6
SIZES = (3, 5)  # seeds of a variant
PLANTED = (0.0, 1.0, 2.0, 3.0)


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """One, with as many runs as it takes."""
    return {REFERENCE: {}}


def found(draw: Callable[[np.random.Generator], np.ndarray], seeds: int, planted: float) -> tuple[float, float]:
    """How many sweeps of `draw`, values [VARIANTS, seeds], claim a difference where none is, and how many find what is
    planted in the last variant."""
    rng, names = np.random.default_rng(seeds), [str(v) for v in range(VARIANTS)]
    rows = {v: {v: 1.0, names[0]: -1.0} for v in names[1:]}
    wrong = right = 0
    for _ in range(SWEEPS):
        values = draw(rng)
        values[-1] += planted
        told = differences(
            {v: dict(enumerate(own.tolist())) for v, own in zip(names, values, strict=True)}, rows,
            [next_look([], range(seeds), None)],
        )  # fmt: skip
        claimed = {v for v, d in told.items() if _claims(d)}
        wrong += bool(claimed - ({names[-1]} if planted else set()))
        right += names[-1] in claimed
    return wrong / SWEEPS, right / SWEEPS


def _claims(d: Difference) -> bool:
    return d.low is not None and d.high is not None and (d.low > 0 or d.high < 0)


def findings(sweep: Sweep, folder: Path) -> tuple[list[str], list[Block]]:
    """What resampled sweeps claim, beside what normal noise of the same spread would."""
    values = np.array(list(on_scale(sweep, sweep.primary)[REFERENCE].values()))
    spread = float(values.std(ddof=1))
    rows, worst, gap = [], 0.0, 0.0
    for seeds in SIZES:
        if VARIANTS * seeds > values.size:
            continue

        def real(rng: np.random.Generator, seeds: int = seeds) -> np.ndarray:
            return rng.choice(values, (VARIANTS, seeds), replace=False)

        def normal(rng: np.random.Generator, seeds: int = seeds) -> np.ndarray:
            return spread * rng.standard_normal((VARIANTS, seeds))

        for planted in PLANTED:
            size = planted * spread * np.sqrt(2)
            wrong, right = found(real, seeds, size)
            _, promised = found(normal, seeds, size)
            worst = max(worst, wrong)
            gap = max(gap, abs(right - promised)) if planted else gap
            shares = [f"{100 * x:.1f}" for x in (wrong, right, promised)]
            rows.append([str(seeds), f"{planted:g}", *(shares if planted else [shares[0], "–", "–"])])
    label = describe(sweep.primary).label
    said = [
        f"Of {SWEEPS:,} sweeps of {VARIANTS} variants drawn from {values.size} runs of one config, at most "
        f"{100 * worst:.1f} % claim any difference in {label} that is not there.",
        f"A planted difference is found within {100 * gap:.1f} points of how often it would be in normal noise.",
    ]
    header = ["seeds", "planted (spreads)", "wrong (%)", "found (%)", "found in normal noise (%)"]
    return said, [Table(header, rows, "Sweeps with any false claim, and with the planted difference found.")]
