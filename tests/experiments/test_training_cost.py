"""The cost of a training step, in small: all kinds train the same model; and with known figures."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from experiments import training_cost
from experiments.lab.peers import Model, products

DECODER = Model(2, 8, 12, 2, 8, 4, 23, 0.1, 0.0, encoder=False, bias=False)
BOTH = Model(1, 8, 12, 2, 8, 4, 23, 0.1, 0.1, encoder=True, bias=True)


def sizes(model: Model) -> dict[str, Any]:
    of_rows = {"data.max_len": model.length, "data.buckets": (model.length,), "data.row_multiple": model.rows}
    of_model = {"model.num_layers": model.layers, "model.d_model": model.width, "model.d_ff": model.inner}
    return of_rows | of_model | {"model.num_heads": model.heads, "data.batch_tokens": model.rows * model.length}


@pytest.mark.parametrize(("name", "model"), [("gpt", DECODER), ("multi30k", BOTH)])
def test_all_kinds_train_the_same_model(name: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = {"model.norm_type": "layer", "model.max_positions": 8, "model.positions": "learned"}
    monkeypatch.setattr(training_cost, "CASES", {"small": (model, name, sizes(model) | norm)})
    monkeypatch.setattr(training_cost, "SECONDS", 0.0)
    rows = {row["kind"]: row for row in training_cost.measure_case("small")}
    assert {"ours", "plain Flax", "products alone"} <= set(rows)
    assert ("torch eager" in rows) == (importlib.util.find_spec("torch") is not None)
    counts = {kind: row["parameters"] for kind, row in rows.items()}
    weights = counts.pop("products alone")
    assert len(set(counts.values())) == 1, counts
    assert weights == sum(a * b for a, b in products.shapes(model))
    assert all(row["milliseconds"] > 0 for row in rows.values())


def test_findings_are_ratios_of_rounds(tmp_path: Path) -> None:
    known = {"ours": "2 4 8", "products alone": "1 2 4", "plain Flax": "3 6 12", "torch eager": "1 4 8"}
    rows = [
        {"case": "a", "kind": kind, "parameters": 7, "rounds": 3, "times": times, "milliseconds": 4.0}
        for kind, times in known.items()
    ]
    answer, blocks = training_cost.findings(rows, tmp_path)
    assert answer[0] == "Ours is so many times as fast as plain Flax: 1.50 in (a)."
    assert answer[1] == "Ours is so many times as fast as torch eager: 1.00 in (a)."
    assert answer[2].endswith("take this share of our step: 50% in (a).")
    assert len(blocks) == 2
