"""The seasonal baseline, held to a loop over the windows; and the reasons why there is none."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformer.config import Config, override
from transformer.data.sources import load_source
from transformer.evaluation.baselines import baselines
from transformer.tasks import task_class
from transformer.tasks.trained import Trained

COUNT, LOOK_BACK, HORIZON = 90, 10, 12


def trained(folder: Path, *, dates: bool = True, step: int = 1, **changes: Any) -> Trained:
    day, random = datetime.date(2023, 5, 1), np.random.default_rng(0)
    values = np.sin(np.arange(COUNT) * 2 * np.pi / 7)[:, None] * [1, 20] + random.normal(size=(COUNT, 2)) * 0.1
    rows = [
        f"{day + datetime.timedelta(days=number * step)},{a},{b}" if dates else f"{a},{b}"
        for number, (a, b) in enumerate(values.tolist())
    ]
    (folder / "a.csv").write_text("\n".join(["date,a,b" if dates else "a,b", *rows]) + "\n")
    config = override(Config(), {
        "task": "forecasting", "model.family": "forecaster", "model.inputs": "series", "model.patch_size": 2,
        "data.name": "series", "data.files": [str(folder / "a.csv")], "data.max_len": LOOK_BACK,
        "data.horizon": HORIZON, "data.split": "sizes:40/25/25", "data.cache": str(folder / "cache"),
    } | changes)  # fmt: skip
    source = load_source(config.data)
    return Trained(config, None, task_class("forecasting")(config, None), None, 0, lambda: source, source.facts)


def by_hand(run: Trained, season: int) -> tuple[float, float]:
    """Mean squared and absolute error over the windows of test, a value at a time."""
    parts = [run.source.split(split)[0]["values"].astype(np.float64) for split in ("train", "validation", "test")]
    whole, errors = np.concatenate(parts), []
    for first in range(65, COUNT - HORIZON + 1):
        for ahead in range(HORIZON):
            back = first + ahead
            while back >= first:
                back -= season
            errors += (whole[back] - whole[first + ahead]).tolist()
    return sum(e * e for e in errors) / len(errors), sum(abs(e) for e in errors) / len(errors)


@pytest.mark.parametrize(("changes", "season"), [({}, 7), ({"data.season": 3}, 3), ({"data.season": 10}, 10)])
def test_the_value_one_season_before(changes: dict[str, Any], season: int, tmp_path: Path) -> None:
    run = trained(tmp_path, **changes)
    found = baselines(run, "test")
    assert list(found) == ["repeat the last value", "seasonal naive", "linear"]
    loss, mae = by_hand(run, season)
    assert found["seasonal naive"] == {"loss": pytest.approx(loss), "mae": pytest.approx(mae), "season": season}
    assert (found["seasonal naive"]["loss"] < 0.1 * found["repeat the last value"]["loss"]) == (season == 7)


@pytest.mark.parametrize(
    ("form", "changes", "reason"),
    [
        ({"dates": False}, {}, "the series has no dates that tell its season: set data.season"),
        ({"step": 2}, {}, "the frequency of the series has no season: set data.season"),
        ({}, {"data.season": 11}, "data.max_len=10 is shorter than a season of 11 steps"),
    ],
)
def test_why_there_is_none(form: dict[str, Any], changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert baselines(trained(tmp_path, **form, **changes), "test")["seasonal naive"] == {"loss": None, "reason": reason}
