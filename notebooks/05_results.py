# %% [markdown]
# # From results.csv to the answer
#
# A sweep writes one row for each variant and seed. Here it is read, compared with a reference, and answered, by hand;
# the report (`python -m experiments.run`) does the same. RESULTS=FILE reads another sweep; the file beside this
# notebook is one of `positions_and_windows` on Multi30k, 3 seeds, a small model.

# %%
# %matplotlib inline
import csv
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path() if Path("experiments").is_dir() else Path("..")
sys.path.insert(0, str(ROOT))  # experiments are run from the checkout, and are not installed

from experiments.lab.measures import describe
from experiments.lab.statistics import ALPHA, POWER, SCALES, Look, differences, mean_interval
from transformer.analysis import comparisons, plots

with open(os.environ.get("RESULTS", ROOT / "notebooks" / "05_results.csv"), encoding="utf-8") as file:
    runs = [row for row in csv.DictReader(file) if row["status"] == "finished"]
METRIC = next(name for name in runs[0] if "/" in name)  # the first column of quality
variants = list(dict.fromkeys(row["variant"] for row in runs))
values = {name: {row["seed"]: float(row[METRIC]) for row in runs if row["variant"] == name} for name in variants}
scale = SCALES[describe(METRIC).noise]  # on which its noise is about as large everywhere
print(f"{METRIC}: {len(runs)} runs of {len(variants)} variants")

# %% [markdown]
# ## Means, with intervals
#
# Of three seeds, a Student t interval is 4.3 standard errors wide to each side.

# %%
for name, found in values.items():
    mean = mean_interval(list(found.values()), describe(METRIC).noise)
    spread = "" if mean.low is None else f"   [{mean.low:.2f}, {mean.high:.2f}]"
    print(f"{name:20} {mean.mean:7.2f}{spread}")

# %% [markdown]
# ## Differences that hold together
#
# Runs of one seed share their batches, and as far as they can their first parameters: what the seed does to all
# variants cancels in a difference. The noise that is left is pooled over the variants, as three seeds of one alone say
# little of it. The intervals are as wide as it takes for all of them to hold in 95 % of sweeps.

# %%
reference = variants[0]
seeds = tuple(int(seed) for seed in values[reference])
scaled = {name: {int(seed): float(scale.forward(x)) for seed, x in found.items()} for name, found in values.items()}
contrasts = {name: {name: 1.0, reference: -1.0} for name in variants[1:]}
level = float(np.mean(list(scaled[reference].values())))


def shown(x: float | None) -> float:
    """A difference to the reference on the scale, in the metric's own unit."""
    return np.nan if x is None else float(scale.back(level + x) - scale.back(level))


MATTERS = 0.5  # what is less does not matter: a question names it before anything is run


def verdict(low: float, high: float) -> str:
    """What an interval shows; one that only holds 0 shows nothing."""
    if low > -MATTERS and high < MATTERS:
        return "equivalent"
    if low > 0 or high < 0:
        return "better" if (low > 0) == (describe(METRIC).better > 0) else "worse"
    return "undecided"


rows, found = [], differences(scaled, contrasts, [Look(seeds, ALPHA)])
for name, d in found.items():
    dots = [shown(x - scaled[reference][seed]) for seed, x in scaled[name].items() if seed in scaled[reference]]
    mean, low, high = shown(d.mean), shown(d.low), shown(d.high)
    rows.append(comparisons.Row(name, mean, low, high, dots, verdict=verdict(low, high)))
    print(f"{name:20} {mean:+6.2f}   [{low:+.2f}, {high:+.2f}]   {rows[-1].verdict}")

# %%
comparisons.forest(rows, MATTERS, f"{METRIC}, difference to {reference}")

# %% [markdown]
# ## What could these seeds have seen?
#
# The true difference that is found in four sweeps of five. Beside it, drawn from normal distributions with a standard
# deviation of 1 for each run: how often is a true difference of so many of them found?

# %%
for name, d in found.items():
    print(f"{name:20} {shown(d.visible):5.2f} {METRIC} would be found in {100 * POWER:.0f} % of sweeps")

# %%
rng = np.random.default_rng(0)
TRUE = np.linspace(0, 6, 7)
DRAWS = 100


def found_share(count: int, true: float) -> float:
    """How often a true difference of one variant is found with `count` seeds."""
    hits = 0
    for noise in rng.standard_normal((DRAWS, len(variants), count)):
        noise[1] += true
        drawn = {name: dict(enumerate(own)) for name, own in zip(variants, noise.tolist(), strict=True)}
        one = differences(drawn, contrasts, [Look(tuple(range(count)), ALPHA)])[variants[1]]
        hits += one.low is not None and (one.low > 0 or one.high < 0)
    return hits / DRAWS


power = {
    f"{count} seeds": (TRUE, np.array([100 * found_share(count, true) for true in TRUE]))
    for count in sorted({len(seeds), 5, 10})
}
plots.lines(power, "true difference (standard deviations of a run)", "found (%)")

# %% [markdown]
# Where there is none, a sweep finds one in 5 % of cases over all its comparisons, so a single one seldom does.

# %%
for name, (_, share) in power.items():
    print(f"{name}: {share[0]:.1f} % where there is no difference, {share[-1]:.0f} % of a difference of {TRUE[-1]:.0f}")
