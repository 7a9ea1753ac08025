"""A sweep with a fake trainer, end to end: faults, resuming, mixing, and what the command line says."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import run
from experiments.lab.questions import load
from experiments.lab.results import read
from experiments.lab.single import Run
from transformer.config import Config
from transformer.training.lock import only_process_in

ROOT = Path(__file__).parents[2]
FAKE = str(Path(__file__).parent / "lab" / "fake_question.py")
FAULTS = "learned-full/0=raise;none-full/0=exit;none-window/0=kill;sinusoidal-window/1=nan;learned-window/1=mistake"


def _sweep(workdir: Path, *more: str) -> int:
    return run.main([FAKE, f"--workdir={workdir}", "--steps=100", *more])


def _rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _quality(workdir: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in _rows(workdir)]


@pytest.fixture(autouse=True)
def _no_real_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_FAULT", raising=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    assert _sweep(workdir, "--seeds=2") == 0
    return workdir


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a run for every way to fail."""
    workdir = tmp_path_factory.mktemp("faulty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_FAULT", FAULTS)
        assert _sweep(workdir, "--seeds=2") == 1
    return workdir


def test_every_file_of_the_report_is_there(whole: Path) -> None:
    rows = _rows(whole)
    assert [(row["variant"], row["seed"]) for row in rows[:3]] == [
        ("sinusoidal-full", "0"),
        ("sinusoidal-full", "1"),
        ("sinusoidal-window", "0"),
    ]
    assert len(rows) == 12
    assert {row["status"] for row in rows} == {"finished"}
    assert [row["longer/exact_match"] == "" for row in rows] == [row["variant"].startswith("learned") for row in rows]
    for name in ("report.md", "report.html", "by_length.csv", "cost.csv", "figures/cost.svg", "figures/learning.png"):
        assert (whole / name).stat().st_size > 100, name


def test_all_variants_of_a_seed_come_before_the_next_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(run.workers, "run_all", lambda tasks, jobs, watcher: order.extend(tasks))
    with pytest.raises(SystemExit):  # nothing was run, so there is nothing to report
        _sweep(tmp_path, "--seeds=2", "--first-seed=7")
    runs = [task for task in order if isinstance(task, Run)]
    assert [task.seed for task in runs] == [7] * 6 + [8] * 6
    assert [task.config.seed for task in runs] == [7] * 6 + [8] * 6
    names = list(load(FAKE).variants(Config()))
    assert [task.variant for task in runs] == names + names


def test_a_result_says_where_it_came_from(whole: Path) -> None:
    result = json.loads((whole / "runs/learned-window/seed1/result.json").read_text())
    assert result["difference"] == {"model.positions": "learned", "model.attention": ["window:8"]}
    assert result["config"]["seed"] == 1
    assert result["config"]["model"]["attention"] == ["window:8"]
    assert result["versions"]["jax"]
    assert result["parameters"] == 1064
    assert len(result["curve"]) > 10
    assert "training learned-window/1" in (whole / "runs/learned-window/seed1/log.txt").read_text()


def test_failed_runs_are_reported_and_the_others_go_on(faulty: Path, whole: Path) -> None:
    failed = {(row["variant"], row["seed"]) for row in _rows(faulty) if row["status"] == "failed"}
    assert failed == {tuple(part.split("=")[0].split("/")) for part in FAULTS.split(";")}
    reasons = {
        "learned-full/seed0": "ValueError: the fake broke",
        "none-full/seed0": "exit code 3; the last line of its log is: about to go",
        "none-window/seed0": "ended by SIGKILL, as the system does when memory runs out",
        "sinusoidal-window/seed1": "test/exact_match is nan: the run diverged",
        "learned-window/seed1": "the fake is too small: take a larger one",
    }
    report = (faulty / "report.md").read_text()
    for place, reason in reasons.items():
        assert reason in (faulty / "runs" / place / "error.txt").read_text()
        assert reason in report
    assert "5 runs of 12 failed" in report
    finished = [row for row in _quality(faulty) if row["status"] == "finished"]
    assert [row for row in _quality(whole) if (row["variant"], row["seed"]) not in failed] == finished


def test_a_stopped_run_is_neither_failed_nor_done(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, place = shutil.copytree(whole, tmp_path / "copy"), Path("runs/none-full/seed1")
    (workdir / place / "result.json").unlink()
    monkeypatch.setenv("FAKE_FAULT", "none-full/1=stop")
    assert _sweep(workdir, "--seeds=2") == os.EX_TEMPFAIL
    assert (
        "none-full seed 1: the fake was stopped after step 7 of 100, which is saved; the same"
        in capsys.readouterr().err
    )
    assert not (workdir / place / "error.txt").exists()
    status = {(row["variant"], row["seed"]): row["status"] for row in _rows(workdir)}
    assert [run for run, told in status.items() if told != "finished"] == [("none-full", "1")]
    assert status["none-full", "1"] == "missing"
    monkeypatch.delenv("FAKE_FAULT")
    assert _sweep(workdir, "--seeds=2") == 0


def test_a_resumed_sweep_keeps_what_is_finished_and_tries_again(
    faulty: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = faulty / "runs/sinusoidal-full/seed0/result.json"
    before = kept.stat().st_mtime_ns
    diverged = faulty / "runs/sinusoidal-window/seed1"
    failure = json.loads((diverged / "failure.json").read_text())
    assert (failure["kind"], failure["step"], failure["config"]["seed"]) == ("diverged", 100, 1)
    assert failure["reason"] == (diverged / "error.txt").read_text().strip()
    assert [path.parent for path in faulty.glob("runs/*/*/failure.json")] == [diverged], "what would fail again"
    assert _sweep(faulty, "--seeds=2") == 1
    assert "; 7 are finished; 1 diverged, and would again" in capsys.readouterr().err
    assert list(faulty.glob("runs/*/*/error.txt")) == [diverged / "error.txt"], "all others were tried again"
    shutil.rmtree(diverged)
    assert _sweep(faulty, "--seeds=2") == 0
    assert kept.stat().st_mtime_ns == before
    assert not list(faulty.glob("runs/*/*/error.txt"))
    assert _quality(faulty) == _quality(whole)  # to the byte, whatever went before
    assert (faulty / "by_length.csv").read_bytes() == (whole / "by_length.csv").read_bytes()


def test_another_base_or_experiment_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for more in (["--set", "model.d_model=96"], ["--steps=200"]):
        with pytest.raises(SystemExit) as stopped:
            _sweep(whole, *more)
        assert stopped.value.code == 2
        assert "another base config" in capsys.readouterr().err
    other = tmp_path / "other_question.py"
    other.write_text(Path(FAKE).read_text())
    with pytest.raises(SystemExit):
        run.main([str(other), f"--workdir={whole}", "--steps=100"])
    assert "holds the experiment 'fake_question', not 'other_question'" in capsys.readouterr().err


def test_how_a_sweep_is_run_may_differ(whole: Path, tmp_path: Path) -> None:
    """It was moved, with its data; and it was written when there was a key that is retired now."""
    workdir = shutil.copytree(whole, tmp_path / "moved")
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("runs/*/*/result.json")}
    for path in (workdir / "sweep.json", *before):
        stored = json.loads(path.read_text())
        stored["config"]["mesh"]["strategy"] = "data"
        path.write_text(json.dumps(stored))
    before = {path: path.stat().st_mtime_ns for path in before}
    assert _sweep(workdir, "--seeds=2", "--set", "data.dir=moved", "--set", "model.remat=full", "--jobs=1") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert _quality(workdir) == _quality(whole)


def test_a_variant_that_changed_its_meaning_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changed = tmp_path / "fake_question.py"
    changed.write_text(Path(FAKE).read_text().replace("window:8", "window:16"))
    with pytest.raises(SystemExit):
        run.main([str(changed), f"--workdir={whole}", "--steps=100", "--report-only"])
    message = capsys.readouterr().err
    assert "sinusoidal-window" in message
    assert "trained as another variant" in message


DAMAGED = {
    "learned-full/seed0": ("", "Expecting value"),
    "learned-full/seed1": ('{"seed": 1, "metrics": {"test/exact', "Unterminated string"),
    "none-full/seed0": ("{}", "it lacks config, metrics"),
    "none-full/seed1": (
        '{"seed": 1, "config": {}, "parameters": 1, "metrics": {"test/loss": NaN}}',
        "test/loss is nan",
    ),
}


def test_a_damaged_result_is_told_and_measured_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(whole, workdir)
    for place, (damage, _) in DAMAGED.items():
        (workdir / "runs" / place / "result.json").write_text(damage)
    assert _sweep(workdir, "--seeds=2", "--report-only") == 1
    lost = {f"{row['variant']}/seed{row['seed']}" for row in _rows(workdir) if row["status"] != "finished"}
    assert lost == set(DAMAGED), "nothing else is lost"
    text = (workdir / "report.md").read_text()
    assert all(reason in text for _, reason in DAMAGED.values())
    again = []
    monkeypatch.setattr(run.workers, "run_all", lambda tasks, jobs, watcher: again.extend(tasks))
    monkeypatch.setattr(run.report, "write", lambda folder, findings: ("", 0))
    _sweep(workdir, "--seeds=2")
    assert {f"{task.variant}/seed{task.seed}" for task in again} == set(DAMAGED)


def test_a_damaged_sweep_is_one_sentence(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(whole, workdir)
    for text in ("", '{"experiment": "fake_question"', '{"experiment": "fake_question"}', "[]"):
        (workdir / "sweep.json").write_text(text)
        with pytest.raises(SystemExit):
            _sweep(workdir, "--seeds=2", "--report-only")
        message = capsys.readouterr().err
        assert "sweep.json' is damaged" in message
        assert message.count("\n") == 1
    (workdir / "sweep.json").unlink()
    monkeypatch.setattr(run.report, "write", lambda folder, findings: ("", len(read(folder).errors)))
    assert _sweep(workdir, "--seeds=2", "--report-only") == 0, "as it said, the finished runs are there"
    assert len(read(workdir).results) == 12


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_started_again_gives_the_same(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.run", FAKE, f"--workdir={tmp_path}", "--steps=100", "--seeds=2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/*/*/result.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 3 <= len(list(tmp_path.glob("runs/*/*/result.json"))) < 12
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0
    assert _quality(tmp_path) == _quality(whole)
    assert (tmp_path / "by_length.csv").read_bytes() == (whole / "by_length.csv").read_bytes()


def test_a_dry_run_does_not_bind_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.workers, "run_all", lambda tasks, jobs, watcher: None)
    _sweep(tmp_path, "--dry-run")
    with pytest.raises(SystemExit) as stopped:  # another base, and no run to report
        _sweep(tmp_path, "--set", "model.d_model=32")
    assert stopped.value.code == 2
    assert json.loads((tmp_path / "sweep.json").read_text())["config"]["model"]["d_model"] == 32


def test_nothing_finished_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        _sweep(tmp_path, "--report-only")
    assert stopped.value.code == 2
    assert "none of the 18 runs" in capsys.readouterr().err


def test_a_question_names_its_own_base_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SETTINGS change the experiment's BASE, less than --set does; a --base is as its file says."""
    question = load("tying")
    monkeypatch.setattr(question, "SETTINGS", {"model.d_ff": 48, "steps": 7}, raising=False)
    monkeypatch.setattr(run, "train", lambda *_: None)
    for name, more in {"own": (), "set": ("--set", "steps=9"), "other": (f"--base={question.BASE}",)}.items():
        with pytest.raises(SystemExit):  # nothing was trained
            run.main(["tying", f"--workdir={tmp_path / name}", "--tune=none", *more])
    found = {name: json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("own", "set", "other")}
    assert [found[name]["config"]["steps"] for name in found] == [7, 9, 1000]
    assert [found[name]["config"]["model"]["d_ff"] for name in found] == [48, 48, 256]
    assert found["other"]["settings"] == {}


def test_two_sweeps_in_one_workdir_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with only_process_in(tmp_path), pytest.raises(SystemExit):
        _sweep(tmp_path)
    assert "another process is at work" in capsys.readouterr().err


def test_what_only_asks_binds_nobody(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report, or the price of more seeds, leaves the sweep as it was begun."""
    workdir = shutil.copytree(whole, tmp_path / "copy")
    before = (workdir / "sweep.json").read_text()
    assert _sweep(workdir, "--report-only") == 0, "of its two seeds, not of the three that are usual"
    assert (workdir / "sweep.json").read_text() == before
    monkeypatch.setattr(run.workers, "run_all", lambda tasks, jobs, watcher: None)
    _sweep(workdir, "--seeds=9", "--dry-run")
    assert (workdir / "sweep.json").read_text() == before


def test_another_reference_or_metric_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "fake_question.py"
    for old, new, said in (
        ('REFERENCE = "sinusoidal-full"', 'REFERENCE = "none-full"', "with another reference: these are named before"),
        ("MATTERS = 0.01", "MATTERS = 0.05", "judged by test/exact_match, of which 0.01 matters, not by"),
    ):
        changed.write_text(Path(FAKE).read_text().replace(old, new))
        with pytest.raises(SystemExit):
            run.main([str(changed), f"--workdir={whole}", "--steps=100", "--report-only"])
        assert said in capsys.readouterr().err


def test_a_sweep_that_was_enlarged_is_a_second_look(whole: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(whole, tmp_path / "copy")
    assert _sweep(workdir, "--seeds=3") == 0
    looks = json.loads((workdir / "sweep.json").read_text())["looks"]
    assert [len(look["seeds"]) for look in looks] == [2, 3]
    assert "Look 2 at this sweep" in (workdir / "report.md").read_text()


def test_a_sweep_grows_by_looks_that_were_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growing = ("--seeds=2", "--until=0.001", "--most-seeds=4")
    assert _sweep(tmp_path, *growing) == 0
    plan = json.loads((tmp_path / "sweep.json").read_text())
    assert plan["seeds"] == [0, 1, 2, 3]
    assert [(len(look["seeds"]), look["alpha"]) for look in plan["looks"]] == [
        (2, pytest.approx(0.025)), (3, pytest.approx(0.0125)), (4, pytest.approx(0.0125))
    ]  # fmt: skip
    assert {row["status"] for row in _rows(tmp_path)} == {"finished"}
    assert "Look 3 at this sweep, with 4 seeds" in (tmp_path / "report.md").read_text()
    with pytest.raises(SystemExit):
        _sweep(tmp_path, "--seeds=2", "--until=0.5", "--most-seeds=9")
    assert "grows until 0.001 with at most 4 seeds" in capsys.readouterr().err


def test_what_cannot_be_judged_is_told_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        (["--base=configs/multi30k.py"], "such as --primary test/bleu --matters 0.5"),
        (["--primary=test/bleu"], "--primary METRIC and --matters SIZE belong together"),
        (["--primary=test/entropy", "--matters=1"], "'test/entropy' cannot be judged on 'configs/quantities.py'"),
        (["--matters=0"], "'0' is not a number above 0"),
        (["--most-seeds=9"], "--most-seeds 9 is for a sweep that grows"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run.main(["heads", f"--workdir={tmp_path}", *more])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*/"))
