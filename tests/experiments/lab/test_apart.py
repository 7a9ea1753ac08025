"""Cases in processes of their own: whatever ends one, what it measured is kept, and the others go on."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.lab.results import append_line, read_lines

HERE = Path(__file__).parent


def _start(folder: Path, *options: str) -> int:
    return run.main([str(folder / "fake_sections.py"), f"--workdir={folder / 'out'}", *options])


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "results.json").read_text())["cases"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every section ended in its own way."""
    folder = tmp_path_factory.mktemp("sections")
    shutil.copy(HERE / "fake_sections.py", folder)
    (folder / "seconds").write_text("12")
    assert _start(folder) == 1
    return folder


@pytest.fixture
def copy(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "copy"))


def test_each_end_is_told_and_no_row_is_lost(measured: Path) -> None:
    found = _results(measured)
    assert {name: len(one["rows"]) for name, one in found.items()} == {
        "good": 1, "raises": 2, "hangs": 1, "dies": 1, "late": 1,
    }  # fmt: skip
    assert [name for name, one in found.items() if one["finished"]] == ["good", "late"]
    assert found["raises"]["error"] == "ArithmeticError: one and one is three"
    assert found["hangs"]["error"] == "its 12 s were over"
    assert "SIGSEGV" in found["dies"]["error"]
    assert found["good"]["where"]["device"].endswith("processor")
    assert (measured / "out" / "dies" / "own.txt").exists()
    with (measured / "out" / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    said = (measured / "out" / "report.md").read_text("utf-8")
    assert "Failed: raises: ArithmeticError: one and one is three" in said
    assert "Missing: a thing that nothing needs." in said


def test_the_same_command_goes_on_with_what_did_not_end(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "mended").touch()
    assert _start(copy) == 0
    assert (copy / "begun").read_text().split()[5:] == ["raises", "hangs", "dies"]
    found = _results(copy)
    assert all(one["finished"] and one["error"] is None and len(one["rows"]) == 1 for one in found.values())
    printed = capsys.readouterr().out
    assert "| raises | 1 |" in printed
    assert "- There are 5 rows." in printed


def test_an_attempt_that_came_less_far_costs_nothing(copy: Path) -> None:
    path = copy / "out" / "raises" / "rows-2.jsonl"
    append_line(path, {"where": read_lines(copy / "out" / "raises" / "rows-1.jsonl")[0]["where"]})
    with path.open("a") as file:
        file.write('{"row": {"section": "raises", "num')  # a kill while it was written
    assert _start(copy, "--report-only") == 1
    assert [row["number"] for row in _results(copy)["raises"]["rows"]] == [1, 2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("commit", "0123", "measurements of commit 0123"), ("device", "card", "measurements of card and")],
)
def test_what_is_of_another_commit_or_device_is_not_mixed(
    copy: Path, key: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "mended").touch()
    path = copy / "out" / "good" / "rows-1.jsonl"
    first, *others = read_lines(path)
    path.unlink()
    for line in ({"where": first["where"] | {key: value}}, *others):
        append_line(path, line)
    with pytest.raises(SystemExit, match="2"):
        _start(copy)
    assert message in capsys.readouterr().err


def test_options_of_sweeps_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _start(copy, "--seeds=5")
    assert "leave out --seeds" in capsys.readouterr().err
