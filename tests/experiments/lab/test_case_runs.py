"""Cases that are measured with seeds: a sweep, from the command line to the report."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.lab import shared, workers
from experiments.lab.case_runs import CaseRun
from transformer.config import Config

HERE = Path(__file__).parent


@pytest.fixture
def command(command_of: Callable[[str], Callable[..., int]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Of the fake cases, whose folder holds `broken` where one of them shall fail."""
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.1)
    return command_of("fake_cases.py")


def test_cases_with_seeds_are_a_sweep(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").touch()
    assert command("--seeds=3", "--jobs=1") == 1
    (tmp_path / "broken").unlink()
    kept = tmp_path / "out/runs/eleven/seed2/result.json"
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert command("--seeds=3", "--jobs=1") == 0, "what failed, and nothing else"
    assert kept.stat().st_mtime_ns == before
    said = capsys.readouterr().out
    assert "eleven and three are better, eleven the most (+3.00 points" in said
    result = json.loads(kept.read_text())
    assert (result["variant"], result["seed"], result["parameters"], result["notes"]) == ("eleven", 2, 6, [])
    assert result["metrics"]["test/accuracy"] == pytest.approx(0.56, abs=1e-3)
    assert result["config"]["model"]["num_layers"] == 6
    assert {"commit", "versions", "device", "cores"} <= set(result)
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert [(row["variant"], row["seed"], row["status"]) for row in rows] == [
        (word, str(seed), "finished") for word in ("one", "three", "eleven") for seed in range(3)
    ]
    report = (tmp_path / "out/report.md").read_text()
    assert "Hypothesis: by a hundredth a letter." in report
    assert "model.num_layers" in report
    plan = json.loads((tmp_path / "out/sweep.json").read_text())
    assert (plan["primary"], plan["matters"], plan["seeds"]) == ("test/accuracy", 0.01, [0, 1, 2])
    assert command("--report-only") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report-only"], "has finished, nothing to report"),
        (["--steps=3", "--dry-run"], "no variants of a config: leave out --steps and --dry-run"),
        (["--submit", "partition=gpu"], "is for --executor=slurm"),
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"one", "test', '"two", "test', "REFERENCE is 'two', which is no variant: choose one of one, three, eleven"),
        ("word: {", '"a/b" + word: {', "cannot name a folder"),
        ("MATTERS =", "OTHER =", "has no MATTERS"),
    ],
)
def test_an_experiment_of_another_form_is_refused(
    old: str, new: str, message: str, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fake_cases.py"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SystemExit, match="2"):
        command()
    assert message in capsys.readouterr().err


def test_a_case_is_known_by_its_arguments_too(tmp_path: Path) -> None:
    """Two cases may stand for one config, such as ours and a peer's."""
    path = tmp_path / "fake_cases.py"
    text = (HERE / "fake_cases.py").read_text()
    path.write_text(text.replace('{"model.num_layers": len(word), "steps": 7}', '{"steps": 7}'))
    ours, peer = (
        CaseRun(str(path), word, 0, Config(), {}, tmp_path / "out" / word) for word in ("one", "three")
    )  # fmt: skip
    assert shared.key(ours) == shared.key(CaseRun(str(path), "one", 0, Config(), {}, tmp_path / "elsewhere"))
    assert shared.key(ours) != shared.key(peer)


def test_a_case_that_is_no_number_failed(command: Callable[..., int], tmp_path: Path) -> None:
    path = tmp_path / "fake_cases.py"
    path.write_text(path.read_text().replace("noise}, ", 'noise * (float("nan") if seed else 1)}, '))
    assert command("--seeds=2", "--jobs=1") == 1
    assert "test/accuracy is nan" in (tmp_path / "out/runs/one/seed1/error.txt").read_text()
    assert "no verdict" not in (tmp_path / "out/report.md").read_text(), "the sweep has ended"
