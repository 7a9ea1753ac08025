"""How far windows see, in small."""

from pathlib import Path

import pytest

from experiments import receptive_field


@pytest.mark.slow
def test_receptive_field_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"LENGTH": 12, "STEPS": 150, "WARMUP": 10, "TEST_ROWS": 256}.items():
        monkeypatch.setattr(receptive_field, name, value)
    rows = receptive_field.measure_case(layers=1, window=4, seed=0)
    assert [row["distance"] for row in rows] == list(range(1, 12))
    within = [row["accuracy"] for row in rows if row["distance"] <= 4]
    past = [row["accuracy"] for row in rows if row["distance"] > 4]
    assert min(within) > 0.9, "one layer of window 4 sees four tokens back"
    assert max(past) < 0.5, "and not five: it guesses one of four values"
    answer, blocks = receptive_field.findings(rows, tmp_path)
    assert answer[0].startswith("1 layer of window 4: ")
    assert "guessing gives 25 %" in answer[0]
    assert (tmp_path / "receptive_field.png").exists()
    assert len(blocks) == 2
