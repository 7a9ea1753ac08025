"""How often the lab is wrong, asked of made-up runs."""

from pathlib import Path

import numpy as np
import pytest

from experiments import null
from experiments.lab.results import Sweep

RUNS = 40


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "SWEEPS", 300)
    monkeypatch.setattr(null, "SIZES", (3,))


def _sweep(values: np.ndarray) -> Sweep:
    plan = {"variants": {"same": {}}, "seeds": list(range(len(values))), "reference": "same", "primary": null.PRIMARY,
            "matters": null.MATTERS, "main_metrics": []}  # fmt: skip
    runs = {("same", seed): {"seed": seed, "metrics": {null.PRIMARY: float(v)}} for seed, v in enumerate(values)}
    return Sweep(plan, runs, {}, None, None)


def test_normal_noise_is_seldom_called_a_difference(tmp_path: Path) -> None:
    values = 1 / (1 + np.exp(-3 - 0.3 * np.random.default_rng(0).standard_normal(RUNS)))
    said, (table,) = null.findings(_sweep(values), tmp_path)
    rows = {row[1]: row[2:] for row in table.rows}
    assert all(float(wrong) < 9 for wrong, *_ in rows.values())
    assert float(rows["1"][1]) < float(rows["2"][1]) < float(rows["3"][1])
    assert float(rows["2"][1]) > 45
    assert rows["0"][1:] == ["–", "–"]
    assert f"drawn from {RUNS} runs" in said[0]


def test_a_planted_difference_is_not_a_false_claim() -> None:
    spread = 1.0
    wrong, right = null.found(lambda rng: spread * rng.standard_normal((6, 3)), 3, 50.0)
    assert right == 1.0
    assert wrong < 0.1


def test_too_few_runs_give_no_rows(tmp_path: Path) -> None:
    _, (table,) = null.findings(_sweep(np.full(17, 0.9)), tmp_path)
    assert table.rows == []
