# %% [markdown]
# # From results.csv to the answer
#
# A sweep writes one row for each variant and seed. Here it is read, compared pair by pair, and answered, by hand; the
# report (`python -m experiments.run`) does the same. RESULTS=FILE reads another sweep; the file beside this notebook
# is one of `positions_and_windows` on Multi30k, 3 seeds, a small model.

# %%
# %matplotlib inline
import csv
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path() if Path("experiments").is_dir() else Path("..")
sys.path.insert(0, str(ROOT))  # experiments are run from the checkout, and are not installed

from experiments.lab.statistics import holm, mean_interval, paired_difference
from transformer.analysis import plots

with open(os.environ.get("RESULTS", ROOT / "notebooks" / "05_results.csv"), encoding="utf-8") as file:
    runs = [row for row in csv.DictReader(file) if row["status"] == "finished"]
METRIC = next(name for name in runs[0] if "/" in name)  # the first column of quality
variants = list(dict.fromkeys(row["variant"] for row in runs))
values = {name: {row["seed"]: float(row[METRIC]) for row in runs if row["variant"] == name} for name in variants}
print(f"{METRIC}: {len(runs)} runs of {len(variants)} variants")

# %% [markdown]
# ## Means, with intervals
#
# Of three seeds, a Student t interval is 4.3 standard errors wide to each side.

# %%
for name, found in values.items():
    mean = mean_interval(list(found.values()), METRIC)
    spread = "" if mean.low is None else f"   [{mean.low:.2f}, {mean.high:.2f}]"
    print(f"{name:20} {mean.mean:7.2f}{spread}")

# %% [markdown]
# ## Paired differences
#
# Runs of one seed share their first parameters, their batches and their dropout masks. What the seed does to both
# cancels in the difference. With several comparisons, Holm's
# correction holds the chance of any false claim at 5 %.

# %%
reference = variants[0]
differences = {}
for name in variants[1:]:
    seeds = [seed for seed in values[name] if seed in values[reference]]
    a, b = ([values[variant][seed] for seed in seeds] for variant in (name, reference))
    differences[name] = paired_difference(a, b, METRIC)
corrected = holm([found.p if found.p is not None else 1.0 for found in differences.values()])
for (name, found), p in zip(differences.items(), corrected, strict=True):
    bounds = "no interval of one seed" if found.low is None else f"[{found.low:+.2f}, {found.high:+.2f}]"
    verdict = "different" if p < 0.05 else "not told apart"
    print(f"{name:20} {found.mean:+6.2f}   {bounds}   p after Holm {p:.3f}   {verdict}")

# %%
names = list(differences)
bounds = np.array([[found.mean, *(np.nan if x is None else x for x in found[1:3])] for found in differences.values()])
plots.differences(names, *bounds.T, plots.styles(names), f"{METRIC}, difference to {reference}")

# %% [markdown]
# ## What could these seeds have seen?
#
# An interval that holds 0 does not say that there is no difference; it may be that the seeds could not show one. Drawn
# from normal distributions with the spread that the differences have here: how often is a true difference found?

# %%
rng = np.random.default_rng(0)
n = len(next(iter(values.values())))
spread = np.median(
    [
        np.std(
            [values[name][seed] - values[reference][seed] for seed in values[reference] if seed in values[name]], ddof=1
        )
        for name in names
    ]
)
TRUE = np.linspace(0, 4 * spread, 9)
SEEDS = sorted({n, 5, 10})
DRAWS = 400


def found_share(seeds: int, true: float) -> float:
    """How often an interval of `seeds` differences does not hold 0."""
    samples = rng.normal(true, spread, (DRAWS, seeds))
    intervals = [mean_interval(list(sample)) for sample in samples]
    return sum(i.low is not None and (i.low > 0 or i.high < 0) for i in intervals) / DRAWS


power = {f"{seeds} seeds": (TRUE, np.array([100 * found_share(seeds, true) for true in TRUE])) for seeds in SEEDS}
plots.lines(power, f"true difference in {METRIC}", "found (%)")

# %% [markdown]
# Where there is none, 5 % of the comparisons find one all the same: that is what 95 % means.

# %%
for name, (_, share) in power.items():
    print(f"{name}: {share[0]:.1f} % where there is no difference, {share[-1]:.0f} % of a difference of {TRUE[-1]:.2f}")
