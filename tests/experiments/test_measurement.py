"""Experiments without variants: cases, resume, report; and the two that there are, in small."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import attention_cost, receptive_field, run
from experiments.lab import attention_times
from experiments.lab.definitions import available, load

HERE = Path(__file__).parent


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., int]:
    """Runs a copy of the fake measurement, whose folder holds `stop` where it shall be interrupted."""
    shutil.copy(HERE / "fake_measurement.py", tmp_path / "fake_measurement.py")

    def start(*options: str) -> int:
        return run.main([str(tmp_path / "fake_measurement.py"), f"--workdir={tmp_path / 'out'}", *options])

    return start


def test_cases_are_measured_and_reported(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    printed = capsys.readouterr().out
    assert "How long are words?" in printed
    assert "- The longest word has 6 letters." in printed
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert rows == [{"word": w, "length": str(len(w))} for w in ("one", "three", "eleven")]
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text("utf-8")
        assert "The longest word has 6 letters." in text
        assert "Hypothesis: as long as they are." in text
        assert "Not finished" not in text


def test_an_interrupted_measurement_goes_on(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stop").touch()
    assert command() == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    kept = (tmp_path / "out" / "rows.jsonl").read_text()
    assert [json.loads(line)["case"] for line in kept.splitlines()] == ["one", "three"]
    assert command("--report-only") == 0
    assert "Not finished: 2 of 3 cases are measured." in (tmp_path / "out" / "report.md").read_text("utf-8")
    (tmp_path / "stop").unlink()
    assert command() == 0
    lines = (tmp_path / "out" / "rows.jsonl").read_text()
    assert lines.startswith(kept), "what was measured is kept"
    assert [json.loads(line)["case"] for line in lines.splitlines()] == ["one", "three", "eleven"]
    assert "The longest word has 6 letters." in (tmp_path / "out" / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report-only"], "nothing is measured yet"),
        (["--steps=3"], "no variants of a config: leave out --steps"),
        (["--seeds=5", "--first-seed=2", "--jobs=1"], "leave out --seeds and --first-seed and --jobs"),
        (["--set", "seed=1", "--base=configs/quantities.py"], "leave out --base and --set"),
    ],
)
def test_bad_input_is_one_sentence(
    command: Callable[..., int], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*options)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_measurements_of_another_commit_are_not_mixed(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    path = tmp_path / "out" / "rows.jsonl"
    lines = [json.loads(line) | {"commit": "0123"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    with pytest.raises(SystemExit, match="2"):
        command()
    assert "measurements of commit 0123" in capsys.readouterr().err
    assert command("--report-only") == 0


def test_the_measurements_are_found() -> None:
    assert {"attention_cost", "receptive_field"} <= set(available())
    assert load("attention_cost") is attention_cost


# --- attention_cost


def test_the_fitted_exponent() -> None:
    lengths = [10, 100, 1000]
    assert attention_cost.exponent(lengths, [3.0 * n**1.7 for n in lengths]) == pytest.approx(1.7)


def test_attention_cost_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attention_cost, "SECONDS", 0.0)
    monkeypatch.setattr(attention_cost, "LONGEST", dict.fromkeys(attention_cost.LONGEST, 64))
    rows = attention_cost.measure_case(37)
    assert {row["kind"] for row in rows} >= {"jax.nn, full", "jax.nn, window", "blockwise, full", "banded, window"}
    assert all(row["rounds"] == attention_cost.MIN_ROUNDS and row["milliseconds"] > 0 for row in rows)
    # Figures with a known answer: the window takes 2 ms a thousand tokens, full attention 1 ms a million pairs.
    known: list[dict[str, Any]] = []
    for length in (1024, 2048, 4096):
        for kind, ms in (("jax.nn, window", length**2 / 1e6), ("banded, window", length / 500)):
            known.append({"kind": kind, "length": length, "milliseconds": ms, "rounds": 3, "bytes": int(ms * 1000),
                          "times": " ".join([f"{ms:.6f}"] * 3)})  # fmt: skip
    answer, blocks = attention_cost.findings(known, tmp_path)
    assert answer[0].endswith("as `jax.nn, window`, by length: 0.5 at 1024, 1.0 at 2048, 2.0 at 4096.")
    assert "2.0 µs at 1024, 2.0 µs at 4096" in answer[1]
    assert "`jax.nn, window` time with L^2.00 and memory with L^2.00" in answer[2]
    assert "`banded, window` time with L^1.00 and memory with L^1.00" in answer[2]
    assert (tmp_path / "cost.png").exists()
    assert (tmp_path / "memory.svg").exists()
    assert len(blocks) == 4


# --- receptive_field


def test_recall_asks_for_what_is_stored() -> None:
    """Against a reading of each row, token by token."""
    r = receptive_field
    tokens, answers, distances = r.draw(np.random.default_rng(3), 50)
    assert tokens.shape == answers.shape == distances.shape == (50, r.LENGTH)
    for row in range(50):
        stored: dict[int, tuple[int, int]] = {}
        for place, token in enumerate(tokens[row]):
            if token >= r.FIRST_STORE:
                key, value = divmod(int(token) - r.FIRST_STORE, r.VALUES)
                assert key not in stored, "each key is stored once"
                stored[key] = (value, place)
                assert answers[row, place] == -1
            elif token > 0:
                value, at = stored[int(token) - 1]
                assert (answers[row, place], distances[row, place]) == (value, place - at)
            else:
                assert answers[row, place] == -1
        assert len(stored) == r.KEYS
    assert set(np.unique(answers)) == {-1, *range(r.VALUES)}


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


def test_attention_is_timed_by_kind_and_length() -> None:
    kinds = {"full, dense": (None, "dense"), "window 2": (2, "banded")}
    rows = attention_times.milliseconds(kinds, lengths=(8, 24), seconds=0.1)
    assert [(row["kind"], row["length"]) for row in rows] == [(kind, n) for n in (8, 24) for kind in kinds]
    assert all(row["rounds"] >= attention_cost.MIN_ROUNDS and row["milliseconds"] > 0 for row in rows)
