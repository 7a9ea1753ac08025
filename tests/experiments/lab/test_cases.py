"""Experiments without variants: cases, resume, report."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def command(command_of: Callable[[str], Callable[..., int]]) -> Callable[..., int]:
    """Of the fake measurement, whose folder holds `stop` where it shall be interrupted."""
    return command_of("fake_measurement.py")


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
    assert command() == os.EX_TEMPFAIL
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


def test_a_line_that_a_kill_tore_is_measured_again_and_costs_no_other(
    command: Callable[..., int], tmp_path: Path
) -> None:
    assert command() == 0
    path = tmp_path / "out" / "rows.jsonl"
    one, three, eleven = path.read_text().splitlines()
    path.write_text(f"{one}\n{eleven}\n{three[:20]}")
    for _ in range(2):
        assert command() == 0
        rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
        assert [row["word"] for row in rows] == ["one", "three", "eleven"]
    lines = path.read_text().splitlines()
    assert lines[:3] == [one, eleven, three[:20]]
    assert len(lines) == 4, "three is measured once more, and only once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report-only"], "nothing is measured yet"),
        (["--steps=3"], "no variants of a config: leave out --steps"),
        (["--seeds=5", "--first-seed=2"], "no variants of a config: leave out --seeds and --first-seed"),
        (["--jobs=2"], "no variants of a config, and its times would be spoilt by runs side by side: leave out --jobs"),
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
