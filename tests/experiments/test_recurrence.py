"""What a Transformer has that a recurrent network has not, in small and with known figures."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import recurrence
from experiments.lab import recall, timing
from experiments.lab.results import table_csv


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_ROUNDS", 1)
    monkeypatch.setattr(recurrence, "SECONDS", 0.0)
    monkeypatch.setattr(recurrence, "KINDS", dict(recurrence.KINDS))


@pytest.mark.parametrize("vocab", [11, pytest.param(64, marks=pytest.mark.slow)])
def test_the_kinds_are_of_one_size(vocab: int) -> None:
    sizes = {kind: recurrence.parameters(recurrence.same_size(kind, vocab)) for kind in recurrence.KINDS}
    assert len(sizes) == 3
    for size in sizes.values():
        assert size == pytest.approx(sizes["Transformer"], rel=0.02)


@pytest.mark.slow
def test_a_step_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many loops as places: on each side, in each direction of differentiation. A share has as many."""
    monkeypatch.setattr(recurrence, "PLACES", 24)
    del recurrence.KINDS["LSTM"]
    rows = {row["kind"]: row for row in recurrence.measure_case("step", length=6, share=2)}
    assert list(rows) == ["Transformer", "LSTM with attention"]
    assert [row["loops"] for row in rows.values()] == [0, 4 * 6]
    assert all(row["rows"] == 2 and row["milliseconds"] > 0 and row["part"] == "step" for row in rows.values())
    assert all(row["bytes"] > 0 for row in rows.values())


def test_recall_is_asked_of_the_middle() -> None:
    """Against a reading of each row, token by token."""
    r, distance = recall, 9
    inputs, asked, answers = recurrence.draw(np.random.default_rng(3), 40, distance)
    assert inputs.shape == (40, 2 * distance + 3)
    assert asked.shape == (40, 1)
    assert set(np.unique(answers)) == {-1, *range(r.VALUES)}
    for row, query, answer in zip(inputs, asked[:, 0], answers, strict=True):
        stores = np.flatnonzero(row >= r.FIRST_STORE)
        assert len(stores) == r.KEYS
        assert stores.min() >= distance
        assert len(row) - stores.max() >= distance, "counted to the query, which stands after the last place"
        stored = dict(divmod(int(token) - r.FIRST_STORE, r.VALUES) for token in row[stores])
        assert answer == (stored[int(query) - 1] if query else -1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM with attention"])
def test_recall_in_small(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is near is learned in few steps; and before any training an answer is a guess."""
    monkeypatch.setattr(recurrence, "TRANSFORMER", recurrence.dataclasses.replace(recurrence.TRANSFORMER, d_model=32))
    recurrence.same_size.cache_clear()
    monkeypatch.setattr(recurrence, "TEST_ROWS", 128)
    monkeypatch.setattr(recurrence, "SEEDS", (0,))
    monkeypatch.setattr(recurrence, "RATE", 1e-2)
    for steps, low, high in ((150, 0.8, 1.0), (1, 0.0, 0.55)):
        monkeypatch.setattr(recurrence, "STEPS", steps)
        monkeypatch.setattr(recurrence, "WARMUP", min(10, steps - 1))
        (row,) = recurrence.measure_case("recall", kind=kind, distance=2)
        assert low <= row["accuracy"] <= high
    recurrence.same_size.cache_clear()


def _known() -> list[dict[str, Any]]:
    """Rows with known answers: the LSTM takes 4 ms a place, the Transformer 1; memory of n² and of n."""
    rows: list[dict[str, Any]] = []
    for length in (16, 32, 64, 128):
        for kind in recurrence.KINDS:
            ms = length * (1.0 if kind == "Transformer" else 4.0)
            size = 2048 // length * length ** (2 if kind == "Transformer" else 1) * 2**12
            rows.append({"part": "step", "kind": kind, "length": length, "share": 1, "rows": 2048 // length,
                         "parameters": 1000, "bytes": size, "loops": 0 if kind == "Transformer" else 4 * length,
                         "milliseconds": ms, "rounds": 3, "times": " ".join([f"{ms}"] * 3)})  # fmt: skip
    for share in (1, 4):
        for kind in recurrence.KINDS:
            ms = 100 / share if kind == "Transformer" else 100.0
            rows.append(rows[0] | {"part": "share", "kind": kind, "share": share, "rows": 32 // share,
                                   "milliseconds": ms})  # fmt: skip
    for kind in recurrence.KINDS:
        for seed in range(3):
            good = 1.0 if kind != "LSTM" else 0.25
            rows.append({"part": "recall", "kind": kind, "distance": 64, "seed": seed, "accuracy": good, "queries": 9})
    return rows


def test_findings_of_known_figures(tmp_path: Path) -> None:
    answer, blocks = recurrence.findings(_known(), tmp_path)
    said = " ".join(answer)
    assert "A training step of the LSTM takes so many times the Transformer's: 4.0 at 16, 4.0 at 32" in said
    assert "from length 32 on: Transformer n^2.00; LSTM with attention n^1.00; LSTM n^1.00" in said
    assert "at most: Transformer 4.0; LSTM with attention 1.0; LSTM 1.0" in said
    assert "Recall of the LSTM, by distance: 25 % at 64." in said
    claims = blocks[0].rows  # type: ignore[union-attr]
    assert len(claims) == 4
    assert "Transformer 0 (128 ms); LSTM with attention 512 (512 ms)" in claims[0][1]
    assert (tmp_path / "step.png").exists()
    assert (tmp_path / "row-memory.svg").exists()


def test_parts_with_columns_of_their_own_share_a_table(tmp_path: Path) -> None:
    rows = _known()
    table_csv(rows, tmp_path / "results.csv")
    read = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(read) == len(rows)
    assert (read[0]["milliseconds"], read[0]["accuracy"]) == ("16", "")
    assert (read[-1]["milliseconds"], read[-1]["accuracy"]) == ("", "0.25")


@pytest.mark.parametrize("part", ["step", "share", "recall"])
def test_findings_of_what_is_there(part: str, tmp_path: Path) -> None:
    """A report of an unfinished measurement."""
    answer, blocks = recurrence.findings([row for row in _known() if row["part"] == part], tmp_path)
    assert answer
    assert len(blocks) >= 2
