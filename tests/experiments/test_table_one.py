"""The paper's Table 1, in small and with known figures."""

from pathlib import Path
from typing import Any

import pytest

from experiments import table_one
from experiments.lab import timing


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_ROUNDS", 1)
    monkeypatch.setattr(table_one, "SECONDS", 0.0)


def test_a_layer_in_small() -> None:
    rows = {row["kind"]: row for row in table_one.measure_case("length", length=40, width=8)}
    assert list(rows) == list(table_one.PAPER)
    assert [rows[kind]["steps"] for kind in ("self-attention", "recurrent", "convolution")] == [1, 40, 1]
    assert all(row["milliseconds"] > 0 for row in rows.values())


@pytest.mark.slow
def test_what_reaches_what() -> None:
    """33 places: one layer sees all of them, a causal convolution of 3 two back a layer, a window of 16 sixteen."""
    rows = {row["kind"]: row for row in table_one.measure_case("reach", length=33, width=4)}
    assert {kind: row["layers"] for kind, row in rows.items()} == {
        "self-attention": 1, "recurrent": 1, "convolution": 16, "restricted": 2,
    }  # fmt: skip
    assert rows["recurrent"]["path"] == 33
    assert rows["convolution"]["path"] == 16


def test_the_table_of_known_figures(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for part, sizes in (("length", (128, 256, 512)), ("width", (32, 64, 128))):
        for size in sizes:
            for kind, paper in table_one.PAPER.items():
                power = paper.of_length if part == "length" else paper.of_width
                row = {"part": part, "kind": kind, "length": 64, "width": 64, "milliseconds": 1e-3 * size**power}
                rows.append(row | {part: size, "steps": size if kind == "recurrent" else 1})
    rows.append({"part": "reach", "kind": "restricted", "length": 65, "width": 8, "layers": 4, "path": 4})
    answer, blocks = table_one.findings(rows, tmp_path)
    assert "`self-attention`: time n^2 d^1 in the table, n^2.00 d^1.00 measured." in answer
    assert "`recurrent`: time n^1 d^2 in the table, n^1.00 d^2.00 measured." in answer
    assert "From the first of 65 places to the last: `restricted` takes 4 layers, a path of 4." in answer
    assert blocks[0].rows[1][4] == "512 of n = 512"  # type: ignore[union-attr]
    assert blocks[0].rows[0][6] == "–"  # type: ignore[union-attr]
    assert (tmp_path / "layer-length.png").exists()
    assert (tmp_path / "layer-width.svg").exists()
