"""Runs that one sweep has trained and another needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.lab import shared, workers
from experiments.lab.single import Run
from transformer import load_run
from transformer.config import Config, from_dict, override
from transformer.errors import UserError

FAKE = Path(__file__).with_name("fake_question.py")
RESULTS = ("*/runs/*/seed*/result.json", "*/tuning/*/*/seed*/result.json")


@pytest.fixture(autouse=True)
def _together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "RESULTS", RESULTS)
    monkeypatch.delenv("FAKE_FAULT", raising=False)
    shared._say.cache_clear()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are done, in this process."""
    done: list[str] = []

    def here(tasks: Any, jobs: Any, watcher: Any) -> None:
        for task in tasks:
            kind, value = workers.perform(task)
            done.append(task.name)
            getattr(watcher, kind)(task, value)

    monkeypatch.setattr(workers, "run_all", here)
    return done


def _trained_itself(workdir: Path) -> int:
    """How many runs were trained there: training leaves its metrics."""
    return len(list(workdir.glob("runs/*/*/metrics.jsonl")))


def _sweep(question: Path, workdir: Path, *more: str) -> int:
    return run.main([str(question), f"--workdir={workdir}", "--steps=100", "--seeds=1", *more])


@pytest.fixture
def question(tmp_path: Path) -> Path:
    """Of two variants."""
    path = tmp_path / "question.py"
    path.write_text(
        FAKE.read_text().replace('"learned": -0.02, "none": -0.2', "").replace(', "window": "window:8"', "")
    )
    return path


def test_a_second_sweep_takes_what_the_first_has_trained(
    question: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _sweep(question, tmp_path / "first") == 0
    first = json.loads((tmp_path / "first/runs/sinusoidal-full/seed0/result.json").read_text())
    assert len(first["key"]) == len(first["code"]) == 64
    capsys.readouterr()
    assert _sweep(question, tmp_path / "second", "--dry-run", "--set", "data.dir=moved") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 runs")
    assert _sweep(question, tmp_path / "second", "--set", "data.dir=moved") == 0
    told = capsys.readouterr().err
    assert "[1/1] sinusoidal-full seed 0: test/exact_match" in told
    assert "(shared from first/sinusoidal-full/seed0)" in told
    folder = tmp_path / "second/runs/sinusoidal-full/seed0"
    second = json.loads((folder / "result.json").read_text())
    assert second["shared_from"] == "first/sinusoidal-full/seed0"
    assert second["config"]["data"]["dir"] == "moved", "the config is this sweep's"
    same = {"config", "began", "ended", "shared_from", "resumed"}
    assert {k: v for k, v in second.items() if k not in same} == {k: v for k, v in first.items() if k not in same}
    assert _trained_itself(tmp_path / "second") == 0
    assert "first/sinusoidal-full/seed0" in (folder / "shared_from.txt").read_text()
    shutil.rmtree(tmp_path / "first")
    assert _sweep(question, tmp_path / "third", "--set", "data.dir=moved") == 0
    third = json.loads((tmp_path / "third/runs/sinusoidal-full/seed0/result.json").read_text())
    assert third["shared_from"] == "first/sinusoidal-full/seed0", "where it was trained"


@pytest.mark.parametrize("changed", ["seed", "steps", "key", "question", "begun"])
def test_what_differs_is_trained(question: Path, tmp_path: Path, trained: list[str], changed: str) -> None:
    assert _sweep(question, tmp_path / "first") == 0
    more = {"seed": ["--first-seed=1"], "steps": ["--steps=60"], "key": ["--set", "label_smoothing=0.2"]}
    if changed == "question":
        question.write_text(question.read_text().replace("quality = 0.97", "quality = 0.90"))
        shared._own.cache_clear()
    if changed == "begun":
        folder = tmp_path / "second/runs/sinusoidal-full/seed0"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert _sweep(question, tmp_path / "second", *more.get(changed, [])) == 0
    assert _trained_itself(tmp_path / "second") == 1


def test_comments_of_a_question_do_not_count(question: Path, tmp_path: Path, trained: list[str]) -> None:
    assert _sweep(question, tmp_path / "first") == 0
    question.write_text(question.read_text().replace("def train(", "# as before\n\n\ndef train("))
    shared._own.cache_clear()
    assert _sweep(question, tmp_path / "second") == 0
    assert not _trained_itself(tmp_path / "second")


def test_a_run_of_other_code_is_told_once_and_trained_again(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _sweep(FAKE, tmp_path / "first") == 0
    monkeypatch.setattr(shared, "code", lambda: "0" * 64)
    capsys.readouterr()
    assert _sweep(FAKE, tmp_path / "second") == 0
    told = capsys.readouterr().err
    assert told.count("trained by other code") == 1
    assert "first/sinusoidal-full/seed0 and 5 more runs were trained by other code, so " in told
    assert _trained_itself(tmp_path / "second") == 6


def test_what_counts_as_code(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("x = 1  # a comment\n")
    two.write_text("x = (1)\n")
    assert shared._digest([one]) == shared._digest([two])
    two.write_text("x = 2\n")
    assert shared._digest([one]) != shared._digest([two])
    assert shared._digest([one], "9.9") != shared._digest([one], "9.8"), "versions of libraries"


def test_a_tokenizer_file_counts_by_its_content(tmp_path: Path) -> None:
    config = override(Config(), {"data.tokenizer": str(tmp_path / "tokenizer.json")})
    (tmp_path / "tokenizer.json").write_text("a")
    before = shared.identity(config)
    (tmp_path / "tokenizer.json").write_text("b")
    assert shared.identity(config) != before
    assert shared.identity(config) == shared.identity(override(config, {"logging.keep": 7, "data.cache": "/there"}))


@pytest.mark.slow
def test_a_run_of_the_library_is_shared_on_the_same_data_only(tmp_path: Path, trained: list[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            '"""Is it so?\n\nHypothesis: yes."""\nBASE = "configs/quantities.py"\nREFERENCE = "same"\n'
            'PRIMARY = "test/loss"\nMATTERS = 0.01\n'
            'def variants(base):\n    return {"same": {}}\n'
        )
    data = tmp_path / "data"
    data.mkdir()
    for split, count in {"train": 40, "validation": 8, "test": 8}.items():
        for side in ("en", "de"):
            (data / f"{split}.{side}").write_text("".join(f"{split} says {i} {side}\n" for i in range(count)))
    small = {"model.d_model": 16, "model.d_ff": 16, "model.num_heads": 2, "model.num_layers": 1, "data.max_len": 24}
    small |= {"data.buckets": "(24,)", "data.batch_tokens": 192, "data.vocab_size": 600, "optimizer.warmup_steps": 1}
    small |= {"data.name": "files", "data.dir": str(data), "data.cache": str(tmp_path / "cache")}
    more = ["--steps=2", *(part for key, value in small.items() for part in ("--set", f"{key}={value}"))]
    assert _sweep(tmp_path / "one.py", tmp_path / "first", *more) == 0
    first = json.loads((tmp_path / "first/runs/same/seed0/result.json").read_text())
    assert first["fingerprint"]
    assert first["validation"] == pytest.approx(first["validation_curve"][-1][1], rel=1e-5)

    assert _sweep(tmp_path / "two.py", tmp_path / "second", *more) == 0
    folder = tmp_path / "second/runs/same/seed0"
    assert json.loads((folder / "result.json").read_text())["shared_from"] == "first/same/seed0"
    assert json.loads((folder / "data.json").read_text())["fingerprint"] == first["fingerprint"]
    with pytest.raises(UserError, match=r"no tokenizer|no checkpoint"):
        load_run(folder)

    (data / "train.en").write_text("".join(f"other words {i}\n" for i in range(40)))
    config = from_dict(first["config"])
    task = Run(str(tmp_path / "two.py"), "same", 0, config, {}, tmp_path / "third", candidates=(folder,))
    assert shared.key(task) == first["key"]
    assert shared.take(task) is None


def test_runs_that_begin_from_another_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "key", lambda run: "k")
    monkeypatch.setattr(shared, "code", lambda: "c")
    other = tmp_path / "first/runs/a/seed0"
    other.mkdir(parents=True)
    (other / "result.json").write_text('{"metrics": {}, "config": {}, "parameters": 1, "key": "k", "code": "c"}')
    for config, expected in ((Config(), (other,)), (override(Config(), {"init_from": "runs/x"}), ())):
        task = Run(str(FAKE), "a", 0, config, {}, tmp_path / "second/runs/a/seed0")
        assert shared.offered([task], tmp_path / "second")[0].candidates == expected
    assert shared.offered([task], tmp_path / "first")[0].candidates == (), "its own are no other sweep's"


def test_code_that_changes_while_a_run_is_stopped_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run is that of neither code, so no other sweep takes it."""
    run_of = Run(str(FAKE), "learned-full", 0, Config(), {}, tmp_path)
    run_of.known_by()
    (tmp_path / "metrics.jsonl").touch()
    before = run_of.known_by()
    assert before == {"key": shared.key(run_of), "code": shared.code()}
    monkeypatch.setattr("experiments.lab.single.code", lambda: "changed")
    assert run_of.known_by()["code"] == f"{before['code']} and changed"
    (tmp_path / "metrics.jsonl").unlink()
    assert run_of.known_by()["code"] == "changed", "nothing was trained by the code before"


def test_all_files_of_a_plugin_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "plug_of_many"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = shared._own.__wrapped__(str(FAKE), ("plug_of_many",), False)
    (package / "part.py").write_text("x = 1  # as before\n")
    assert shared._own.__wrapped__(str(FAKE), ("plug_of_many",), False) == before
    (package / "part.py").write_text("x = 2\n")
    assert shared._own.__wrapped__(str(FAKE), ("plug_of_many",), False) != before
