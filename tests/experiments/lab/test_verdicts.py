"""Verdicts of a sweep: failures are the worst there is, and only what has ended and was named before is judged."""

from typing import Any

import numpy as np
import pytest

from experiments.lab.results import Sweep
from experiments.lab.verdicts import effects, judge, on_scale

METRIC = "test/exact_match"


def _sweep(table: dict[str, list[float | None]], metric: str = METRIC, matters: float = 0.02, **more: Any) -> Sweep:
    """Variant -> the value of each seed; None is a run that failed."""
    seeds = list(range(len(next(iter(table.values())))))
    plan = {"variants": {v: {} for v in table}, "seeds": seeds, "reference": next(iter(table)), "primary": metric,
            "matters": matters, "main_metrics": [], "config": {}} | more  # fmt: skip
    results = {
        (v, seed): {"seed": seed, "metrics": {metric: value}, "curve": [[1, 9.0], [2, 1.0]]}
        for v, own in table.items()
        for seed, value in enumerate(own)
        if value is not None
    }
    errors = {(v, seed): "it broke" for v, own in table.items() for seed, value in enumerate(own) if value is None}
    return Sweep(plan, results, errors, None, None)


BASE = [0.90, 0.91, 0.92, 0.905]
SAME = [0.903, 0.908, 0.921, 0.907]
BETTER = [0.95, 0.951, 0.962, 0.953]


def test_the_four_verdicts() -> None:
    found = judge(_sweep({"base": BASE, "same": SAME, "better": BETTER, "worse": [0.8, 0.81, 0.82, 0.805]}), METRIC)
    assert {v: judged.verdict for v, judged in found.items()} == {
        "same": "equivalent",
        "better": "better",
        "worse": "worse",
    }
    narrower = judge(_sweep({"base": BASE, "same": SAME, "better": BETTER}, matters=1e-4), METRIC)
    assert narrower["same"].verdict == "undecided"
    assert judge(_sweep({"base": [0.9], "one": [0.5]}), METRIC)["one"].verdict == "undecided"


def test_less_is_better_of_a_loss() -> None:
    table = {"base": [1.0, 1.01, 1.02], "low": [0.7, 0.71, 0.715], "high": [1.4, 1.42, 1.41]}
    found = judge(_sweep(table, "test/loss", 0.01), "test/loss")
    assert (found["low"].verdict, found["high"].verdict) == ("better", "worse")
    assert found["low"].difference.mean == pytest.approx(-0.30, abs=0.01)


def test_what_is_within_what_matters_is_equivalent_also_where_zero_is_excluded() -> None:
    base = [0.9, 0.92, 0.88, 0.91]
    small = [0.0007, -0.0004, -0.0006, 0.0005]
    table = {"base": base, "a": [x + 0.005 + e for x, e in zip(base, small, strict=True)],
             "b": [x + e for x, e in zip(base, reversed(small), strict=True)]}  # fmt: skip
    found = judge(_sweep(table), METRIC)
    assert found["a"].difference.low > 0
    assert found["a"].verdict == "equivalent"


def test_a_variant_with_a_failure_is_never_better() -> None:
    """From the two seeds that lived it would be."""
    table = {"base": BASE, "lucky": [0.99, None, 0.992, 0.991], "same": SAME, "gone": [None] * 4}
    found = judge(_sweep(table), METRIC)
    assert found["lucky"].verdict == "undecided"
    assert found["lucky"].why == "1 of 4 runs of lucky failed"
    assert found["lucky"].difference.mean < 0
    assert found["gone"].verdict == "worse"
    assert found["same"].verdict == "equivalent", "the noise of a failure is not that of the others"


def test_nor_where_the_worst_there_is_would_leave_it_better() -> None:
    """Of a metric without an end, a failure counts as the worst of the others."""
    table = {"base": [1.0, 1.1, 0.9, 1.0, 1.05, 0.95], "lucky": [100.0, 101.0, 99.0, 100.0, None, 102.0]}
    judged = judge(_sweep(table, "test/speed"), "test/speed")["lucky"]
    assert judged.difference.low > 0
    assert judged.verdict == "undecided"


def test_a_reference_that_never_ran_makes_nothing_better() -> None:
    found = judge(_sweep({"base": [None] * 4, "b": BASE, "c": BETTER}), METRIC)
    assert {judged.verdict for judged in found.values()} <= {"undecided"}


def test_a_variant_without_values_is_not_given_the_worst() -> None:
    sweep = _sweep({"base": BASE, "mute": [0.5, None, 0.5, 0.5]})
    for run in sweep.of("mute"):
        run["metrics"][METRIC] = None
    assert "mute" not in judge(sweep, METRIC)


def test_what_nobody_has_learned_is_not_equivalent() -> None:
    judged = judge(_sweep({"base": [0.0] * 4, "same": [0.0] * 4}), METRIC)["same"]
    assert (judged.verdict, judged.why) == ("undecided", "neither gets anything right")


def test_equivalence_near_a_ceiling_allows_for_the_level() -> None:
    """Of a true difference of all that matters, from 97 to 99 %, where the level moves points more than it does."""
    rng, wrong, covered, sweeps = np.random.default_rng(1), 0, 0, 300
    low, high = np.log(0.97 / 0.03), np.log(0.99 / 0.01)
    names = ["base", "a", "b", "c", "d", "e"]
    for _ in range(sweeps):
        table = np.full((6, 3), low) + 0.3 * rng.standard_normal((6, 3))
        table[1] += high - low
        shares = 1 / (1 + np.exp(-table))
        judged = judge(_sweep(dict(zip(names, shares.tolist(), strict=True))), METRIC)["a"]
        wrong += judged.verdict == "equivalent"
        covered += judged.difference.low <= 0.02 <= judged.difference.high
    assert wrong / sweeps <= 0.05
    assert covered / sweeps >= 0.9


def test_a_reference_with_a_failure_is_not_called_better() -> None:
    found = judge(_sweep({"base": [0.9, None, 0.91, 0.9], "low": [0.1, 0.11, 0.12, 0.11]}), METRIC)
    assert found["low"].verdict == "undecided"


def test_a_failure_counts_as_the_worst_there_is() -> None:
    values = on_scale(_sweep({"base": BASE, "x": [0.9, None, 0.9, 0.9]}), METRIC)
    assert values["x"][1] == pytest.approx(np.log(5e-4 / (1 - 5e-4)))
    losses = on_scale(_sweep({"base": [1.0, 1.1], "x": [1.0, None]}, "test/loss"), "test/loss")
    assert losses["x"][1] == pytest.approx(np.log(9.0)), "the loss before training"


def test_a_sweep_that_has_not_ended_has_no_verdict() -> None:
    sweep = _sweep({"base": BASE, "better": BETTER})
    del sweep.results["better", 3]
    assert judge(sweep, METRIC)["better"].verdict == ""
    assert judge(_sweep({"base": BASE, "better": BETTER}), METRIC)["better"].verdict == "better"


def test_other_metrics_have_no_verdict() -> None:
    sweep = _sweep({"base": BASE, "better": BETTER})
    for run in sweep.results.values():
        run["metrics"]["test/loss"] = 1 - run["metrics"][METRIC]
    found = judge(sweep, "test/loss")
    assert found["better"].verdict == ""
    assert found["better"].difference.high < 0


def test_no_interval_leaves_what_is_possible() -> None:
    base, near = [0.99, 0.97, 0.999], [1.0, 0.98, 0.96]
    found = judge(_sweep({"base": base, "near": near, "zero": [0.0, 0.0, 0.01]}), METRIC)
    for judged in found.values():
        assert -1 <= judged.difference.low <= judged.difference.mean <= judged.difference.high <= 1
    assert found["zero"].verdict == "worse"


GRID = {
    "a-x": [0.90, 0.91, 0.92, 0.905],
    "a-y": [0.902, 0.912, 0.917, 0.906],
    "b-x": [0.80, 0.812, 0.82, 0.803],
    "b-y": [0.801, 0.811, 0.822, 0.806],
}


def test_effects_are_averaged_where_no_interaction_is_seen() -> None:
    found, said = effects(_sweep(GRID), METRIC)
    assert list(found) == ["b instead of a", "y instead of x"]
    assert found["b instead of a"].difference.mean == pytest.approx(-0.1, abs=0.01)
    assert found["b instead of a"].difference.high < 0
    assert "No interaction" in said
    assert all(judged.verdict == "" for judged in found.values())


def test_where_parts_interact_simple_effects_are_given() -> None:
    """+0.3, and +28.9: their mean says nothing."""
    found, said = effects(_sweep(GRID | {"b-y": [0.93, 0.94, 0.945, 0.935]}), METRIC)
    assert set(found) == {
        "b instead of a, with x",
        "b instead of a, with y",
        "y instead of x, with a",
        "y instead of x, with b",
    }
    assert found["b instead of a, with x"].difference.mean < 0 < found["b instead of a, with y"].difference.mean
    assert "interact" in said


def test_parts_of_the_same_names_keep_their_effects() -> None:
    table = {"off-off": GRID["a-x"], "on-off": GRID["b-x"], "off-on": GRID["a-y"], "on-on": GRID["b-y"]}
    found, _ = effects(_sweep(table), METRIC)
    assert list(found) == ["on instead of off", "on instead of off (part 2)"]


def test_one_seed_shows_no_effects() -> None:
    assert effects(_sweep({v: own[:1] for v, own in GRID.items()}), METRIC) == ({}, "")


def test_names_that_are_no_grid_have_no_effects() -> None:
    assert effects(_sweep({"base": BASE, "one": BASE, "two": BASE}), METRIC) == ({}, "")
    assert effects(_sweep({"a-x": BASE, "b-x": BASE}), METRIC) == ({}, "")
    assert effects(_sweep({"a-x": BASE, "a-y": BASE, "b-x": BASE}), METRIC) == ({}, "")
