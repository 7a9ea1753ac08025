"""How far windows see, in small."""

import pytest

from experiments import receptive_field
from transformer.config import override


@pytest.mark.slow
def test_receptive_field_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LENGTH": 12, "TEST_ROWS": 256}.items():
        monkeypatch.setattr(receptive_field, name, value)
    small = override(receptive_field.CONFIG, {"steps": 150, "optimizer.warmup_steps": 10})
    monkeypatch.setattr(receptive_field, "CONFIG", small)
    found = receptive_field.measure_case(layers=1, window=4, seed=0)
    metrics, rows = found["metrics"], found["by_length"]["rows"]
    assert metrics["test/recall_inside"] > 0.9, "one layer of window 4 sees four tokens back"
    assert metrics["test/recall_at_edge"] > 0.9
    assert metrics["test/recall_outside"] < 0.5, "and not five: it guesses one of four values"
    assert metrics["test/recall_past_edge"] < 0.5
    assert [(row["low"], row["high"]) for row in rows] == [(0, 4), (4, 8), (8, 12)]
    assert rows[0]["accuracy"] == metrics["test/recall_inside"]
    assert sum(row["count"] * row["accuracy"] for row in rows[1:]) == pytest.approx(
        metrics["test/recall_outside"] * sum(row["count"] for row in rows[1:])
    )
    assert found["parameters"] > 10_000
    assert receptive_field.config(3, 8).model.attention == ("window:8",)
    assert receptive_field.REFERENCE in receptive_field.cases()
