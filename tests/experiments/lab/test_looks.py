"""Looks are recorded, and a sweep grows by seeds until it has what it wants."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.lab.looks import grown, growth, look
from experiments.lab.statistics import ALPHA, FIRST
from transformer.config import Config, to_dict
from transformer.errors import UserError

METRIC = "test/exact_match"


def _write(workdir: Path, seeds: int, until: dict[str, Any] | None = None, shift: float = 0.0) -> None:
    """A sweep of two variants that are `shift` apart."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, (2, 20))
    old = json.loads((workdir / "sweep.json").read_text()) if (workdir / "sweep.json").exists() else {"looks": []}
    plan = {"experiment": "question", "variants": {"a": {}, "b": {}}, "reference": "a", "config": to_dict(Config()),
            "primary": METRIC, "matters": 0.001, "main_metrics": [METRIC], "until": until, "looks": old["looks"],
            "seeds": list(range(seeds))}  # fmt: skip
    (workdir / "sweep.json").write_text(json.dumps(plan))
    for place, variant in enumerate("ab"):
        for seed in range(seeds):
            folder = workdir / "runs" / variant / f"seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            value = 0.8 + place * shift + noise[place, seed]
            result = {"seed": seed, "metrics": {METRIC: value}, "config": {}, "parameters": 1}
            (folder / "result.json").write_text(json.dumps(result))


def _looks(workdir: Path) -> list[tuple[int, float]]:
    return [(len(one["seeds"]), one["alpha"]) for one in json.loads((workdir / "sweep.json").read_text())["looks"]]


def test_a_sweep_that_is_enlarged_by_hand_is_corrected(tmp_path: Path) -> None:
    for seeds in (3, 3, 4, 6):
        _write(tmp_path, seeds)
        look(tmp_path)
    first = FIRST * ALPHA
    left = ALPHA - first
    assert _looks(tmp_path) == [
        (3, pytest.approx(first)),
        (4, pytest.approx(left / 2)),
        (6, pytest.approx(left / 4)),
    ], "the same seeds again are no other look"


def test_what_has_not_ended_is_no_look(tmp_path: Path) -> None:
    _write(tmp_path, 3)
    (tmp_path / "runs/b/seed2/result.json").unlink()
    look(tmp_path)
    assert _looks(tmp_path) == []
    (tmp_path / "runs/b/seed2/error.txt").write_text("it broke")
    look(tmp_path)
    assert [seeds for seeds, _ in _looks(tmp_path)] == [3]


def test_a_sweep_grows_until_its_intervals_are_narrow(tmp_path: Path) -> None:
    seeds = 3
    while True:
        _write(tmp_path, seeds, {"width": 1.5, "most": 15})
        plan = grown(look(tmp_path), tmp_path)
        if plan is None:
            break
        assert plan["seeds"] == list(range(seeds + 1))
        assert json.loads((tmp_path / "sweep.json").read_text())["seeds"] == plan["seeds"]
        seeds += 1
    looks = _looks(tmp_path)
    assert 3 < seeds < 15
    assert [count for count, _ in looks] == list(range(3, seeds + 1))
    assert [alpha for _, alpha in looks] == pytest.approx([ALPHA * 3 / 15] + [ALPHA / 15] * (seeds - 3))


def test_it_ends_with_verdicts_or_with_the_most_seeds(tmp_path: Path) -> None:
    for name, until, shift, seeds, ends in (
        ("verdict", {"width": 0.001, "most": 15}, 0.15, 5, True),
        ("most", {"width": 0.001, "most": 5}, 0.0, 5, True),
        ("neither", {"width": 0.001, "most": 6}, 0.0, 5, False),
        ("by hand", None, 0.0, 5, True),
    ):
        workdir = tmp_path / name
        workdir.mkdir()
        _write(workdir, seeds, until, shift)
        assert (grown(look(workdir), workdir) is None) == ends, name


def test_what_may_be_asked_of_growth() -> None:
    assert growth(None, None, 3) is None
    assert growth(0.5, None, 3) == {"width": 0.5, "most": 12}
    with pytest.raises(UserError, match="--most-seeds 9 is for a sweep that grows: add --until"):
        growth(None, 9, 3)
    with pytest.raises(UserError, match="--most-seeds 2 is less than the 3 seeds"):
        growth(0.5, 2, 3)
