"""Own rates for each variant: who wins depends on whether each has its own."""

import csv
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import run
from experiments.lab import tuning, workers
from transformer.config import Config, override
from transformer.errors import UserError

# Of each variant the rate of its lowest loss, and that loss: at 1e-3, the base's, "wide" is worse, and it is better at
# its own. Above 1e-1 a run diverges.
QUESTION = '''
"""Is wide better?

Hypothesis: yes, at its own rate.
"""
import dataclasses, json, math
from pathlib import Path
import numpy as np
from transformer.config import from_dict, to_dict
from transformer.training.meter import Diverged

BASE = "configs/quantities.py"
REFERENCE = "narrow"
PRIMARY = "test/loss"
MATTERS = 0.01
MAIN_METRICS = ["test/loss"]
BEST = {"narrow": (1e-3, 1.0), "wide": (8e-3, 0.8)}


def variants(base):
    return {name: {"model.d_ff": size} for name, size in {"narrow": 64, "wide": 128}.items()}


@dataclasses.dataclass
class Fake:
    config: object
    params: dict


def train(config, workdir):
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    lines = [{"step": s, "loss": 2.0, "skipped": 1, "seconds_per_step": 0.1} for s in (50, 100)]
    lines += [{"step": 100, "validation_loss": 1.5}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    if config.optimizer.learning_rate > 0.1:
        raise Diverged("the loss was no finite number for 5 steps in a row")


def restore(workdir):
    config = from_dict(json.loads((workdir / "config.json").read_text()))
    return Fake(config, {"params": {"embedder": {"table": np.zeros((9, 1))}}})


def measure(trained):
    rate, best = BEST["narrow" if trained.config.model.d_ff == 64 else "wide"]
    loss = best + 0.1 * math.log2(trained.config.optimizer.learning_rate / rate) ** 2
    return {"metrics": {"test/loss": loss + 1e-3 * (trained.config.seed % 7)}, "notes": [], "validation": loss}
'''


def _here(tasks: Any, jobs: Any, watcher: Any) -> None:
    for task in tasks:
        kind, value = workers.perform(task)
        getattr(watcher, kind)(task, value)


@pytest.fixture
def question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(workers, "run_all", _here)
    path = tmp_path / "question.py"
    path.write_text(QUESTION)
    return path


def _sweep(question: Path, name: str, *more: str) -> tuple[int, Path]:
    workdir = question.parent / name
    settings = ["--set", "optimizer.learning_rate=1e-3", "--steps=100", "--seeds=2", "--set", "model.d_model=32"]
    return run.main([str(question), f"--workdir={workdir}", *settings, *more]), workdir


def _losses(workdir: Path) -> dict[str, float]:
    with (workdir / "results.csv").open(encoding="utf-8") as file:
        return {row["variant"]: float(row["test/loss"]) for row in csv.DictReader(file) if row["seed"] == "0"}


def test_a_pair_whose_order_flips_is_called_rightly_when_tuned(
    question: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the grid of "wide" grows from 2e-3 to 16e-3, where 8e-3 is no edge. The same command tunes no more."""
    code, common = _sweep(question, "common", "--tune=none")
    assert code == 0
    assert _losses(common) == pytest.approx({"narrow": 1.0, "wide": 0.8 + 0.1 * 9})
    assert json.loads((common / "sweep.json").read_text())["tuning"] is None
    capsys.readouterr()

    assert _sweep(question, "own", "--dry-run")[0] == 0
    planned = capsys.readouterr().out.splitlines()
    assert planned[-2].startswith("16 runs, 2 at a time"), "two variants: three values and two seeds, and two seeds"
    assert planned[-1].startswith("12 of the runs tune optimizer.learning_rate")

    code, own = _sweep(question, "own")
    assert code == 0
    assert _losses(own) == pytest.approx({"narrow": 1.0, "wide": 0.8})
    told = capsys.readouterr().err
    assert "tuning optimizer.learning_rate, round 1: 12 runs of 100 steps: 2 variants, seeds 1000000000, 100" in told
    assert "round 2: 2 runs of 100 steps: 1 variants" in told
    assert "wide at 0.016 seed 1000000001: validation/loss 0.9" in told

    plan = json.loads((own / "sweep.json").read_text())
    found = plan["tuning"]
    assert found["key"] == "optimizer.learning_rate"
    assert found["seeds"] == list(tuning.SEEDS)
    assert found["chosen"] == {"narrow": 1e-3, "wide": 8e-3}
    assert [row["value"] for row in found["tried"]["wide"]] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3]
    assert found["tried"]["narrow"][0] == {
        "value": 5e-4, "losses": pytest.approx([1.1, 1.1]), "mean": pytest.approx(1.1), "diverged": 0,
    }  # fmt: skip
    assert found["width"] == {"narrow": [1e-3, 1e-3], "wide": [8e-3, 8e-3]}
    assert plan["variants"]["wide"] == {"model.d_ff": 128, "optimizer.learning_rate": 8e-3}
    result = json.loads((own / "runs/wide/seed1/result.json").read_text())
    assert result["config"]["optimizer"]["learning_rate"] == 8e-3
    assert result["difference"] == plan["variants"]["wide"]
    assert (result["validation"], result["skipped"]) == (pytest.approx(0.8), 2)
    assert (result["curve"], result["validation_curve"]) == ([[50, 2.0], [100, 2.0]], [[100, 1.5]])
    assert {row["seed"] for row in csv.DictReader((own / "results.csv").open())} == {"0", "1"}, "no seed of the tuning"

    monkeypatch.setattr(tuning, "grid", None)  # the choice stands in sweep.json
    (own / "runs/wide/seed1/result.json").unlink()
    assert _sweep(question, "own")[0] == 0
    assert json.loads((own / "runs/wide/seed1/result.json").read_text())["config"] == result["config"]
    assert _sweep(question, "own", "--report-only", "--tune=none")[0] == 0, "a report asks for nothing"
    with pytest.raises(SystemExit):
        _sweep(question, "own", "--tune=none")
    assert "a sweep with --tune optimizer.learning_rate, not --tune none: use the former" in capsys.readouterr().err


def test_tuning_goes_on_where_it_stopped(
    question: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Enough(KeyboardInterrupt):
        pass

    done = []

    def seven(tasks: Any, jobs: Any, watcher: Any) -> None:
        for task in tasks:
            if len(done) == 7:
                raise Enough
            done.append(task.name)
            _here([task], jobs, watcher)

    monkeypatch.setattr(workers, "run_all", seven)
    assert _sweep(question, "stopped")[0] == os.EX_TEMPFAIL
    monkeypatch.setattr(workers, "run_all", _here)
    capsys.readouterr()
    code, workdir = _sweep(question, "stopped")
    assert code == 0
    assert "round 1: 12 runs of 100 steps: 2 variants, seeds 1000000000, 1000000001; 7 are" in capsys.readouterr().err
    assert json.loads((workdir / "sweep.json").read_text())["tuning"]["chosen"]["wide"] == 8e-3
    (workdir / "sweep.json").unlink()
    monkeypatch.setattr(workers, "run_all", None)
    assert _sweep(question, "stopped", "--report-only")[0] == 0, "the choice follows from what was tuned"
    assert json.loads((workdir / "sweep.json").read_text())["tuning"]["chosen"]["wide"] == 8e-3


def test_a_rate_that_diverges_is_infinite_and_is_not_tried_again(question: Path) -> None:
    text = QUESTION.replace("(1e-3, 1.0)", "(6e-2, 1.0)").replace("(8e-3, 0.8)", "(6e-2, 0.8)")
    unlucky = "rate > 0.1 or config.seed == 1_000_000_001 and config.optimizer.learning_rate > 0.05"
    question.write_text(text.replace("rate > 0.1", unlucky))
    code, workdir = _sweep(question, "hot", "--set", "optimizer.learning_rate=0.06")
    assert code == 0
    found = json.loads((workdir / "sweep.json").read_text())["tuning"]
    assert found["chosen"]["wide"] == 0.03, "a seed of two diverged at 0.06"
    lost = {row["value"]: (row["losses"], row["mean"], row["diverged"]) for row in found["tried"]["wide"]}
    assert lost[0.06] == ([pytest.approx(0.8), None], None, 1)
    assert lost[0.12] == ([None, None], None, 2)
    assert json.loads((workdir / "tuning/wide/0.12/seed1000000000/failure.json").read_text())["kind"] == "diverged"


def test_a_grid_without_an_end_is_one_sentence(question: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question.write_text(QUESTION.replace("(8e-3, 0.8)", "(9.0, 0.8)").replace("rate > 0.1", "rate > 10"))
    with pytest.raises(SystemExit) as stopped:
        _sweep(question, "endless")
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the grid of optimizer.learning_rate never brackets the best value of 'wide' (0.0005: " in told
    assert "0.128: " in told
    assert "0.256" not in told, "six values more than three"
    assert "--set optimizer.learning_rate=VALUE" in told


def test_a_trial_that_fails_is_told_and_tried_again(question: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question.write_text(QUESTION.replace("def train(config, workdir):", "def train(config, workdir):\n    1 / 0"))
    with pytest.raises(SystemExit) as stopped:
        _sweep(question, "broken")
    assert stopped.value.code == 2
    assert "narrow at 0.0005 seed 1000000000 failed (ZeroDivisionError" in capsys.readouterr().err.splitlines()[-1]
    question.write_text(QUESTION)
    assert _sweep(question, "broken")[0] == 0
    question.write_text(QUESTION.replace('"validation": loss', '"validation": None'))
    with pytest.raises(SystemExit):
        _sweep(question, "blind")
    assert "gives no loss to tune optimizer.learning_rate by" in capsys.readouterr().err


def test_the_grid() -> None:
    assert tuning.grid(0.4, {}) == [(0.2,), (0.4,), (0.8,)]
    below = {(0.2,): 1.0, (0.4,): 2.0, (0.8,): 3.0}
    assert tuning.grid(0.4, below) == [(0.1,)]
    assert tuning.grid(0.4, below | {(0.1,): 1.5}) == []
    assert tuning.grid(0.4, {(0.2,): 3.0, (0.4,): 2.0, (0.8,): 1.0}) == [(1.6,)]
    assert tuning.grid(0.4, dict.fromkeys(below, 1.0)) == [], "of equal ones the middle"
    assert tuning.grid(0.4, dict.fromkeys(below, math.inf)) == [(0.1,)], "where all diverge, lower"
    assert tuning.grid(0.4, below | {(0.2,): math.inf, (0.4,): math.inf}) == [(1.6,)]
    assert tuning.grid(3, {}) == [(2,), (3,), (6,)], "whole numbers stay whole"
    with pytest.raises(ValueError, match="at the edge"):
        tuning.grid(2, {(1,): 1.0, (2,): 2.0, (4,): 3.0})  # there is none below 1


def test_the_width_is_what_costs_two_percent() -> None:
    config = override(Config(), {"optimizer.learning_rate": 4e-3})
    search = tuning.Tuning("q", {"a": config}, {"a": {}}, {tuning.RATE: None}, Path())
    losses = {1e-3: 2.03, 2e-3: 2.039, 4e-3: 2.0, 8e-3: 2.05, 16e-3: 2.01}
    found = search._chosen({"a": {(value,): [loss, loss] for value, loss in losses.items()}})
    assert found["width"] == {"a": [1e-3, 4e-3]}, "up to the first that costs more"


@pytest.mark.parametrize(
    ("changes", "attributes", "given", "expected"),
    [
        ({"model.d_ff": 8}, {}, None, {tuning.RATE: None}),
        ({"data.tokenizer": "bytes"}, {}, None, {}),
        ({"data.tokenizer": "bytes"}, {"TUNE": tuning.RATE}, None, {tuning.RATE: None}),
        ({"model.d_ff": 8}, {"TUNE": None}, None, {}),
        ({"model.d_ff": 8, tuning.RATE: 1e-3}, {}, None, {}),
        ({"model.d_ff": 8}, {}, ["none"], {}),
        ({"model.d_ff": 8}, {"TUNE": None}, ["optimizer.warmup_steps"], {"optimizer.warmup_steps": None}),
    ],
)
def test_what_is_tuned(changes: Any, attributes: Any, given: Any, expected: Any) -> None:
    assert tuning.keys_of(SimpleNamespace(**attributes), {"a": Config()}, {"a": changes}, given) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "trials", "sentence"),
    [
        (
            ["optimizer.weight_decay"],
            None,
            "--tune optimizer.weight_decay is 0.0 here: name a key with a number above 0",
        ),
        (["model.num_layers"], None, "--tune model.num_layers is 2 here"),
        (["optimizer.max_skipped"], None, "says how a run is run"),
        (["optimizer.eps"], None, "is set by the variants themselves"),
        (["optimizer.rate"], None, "unknown config key 'optimizer.rate'"),
        ([f"{tuning.RATE}=1e-4..1e-2"], None, "more than a grid can do: add --trials N"),
        ([tuning.RATE, "model.dropout"], None, "more than a grid can do"),
        ([f"{tuning.RATE}=1e-2..1e-4"], 3, "has no range: write --tune optimizer.learning_rate=LOW..HIGH"),
        (["none"], 3, "--trials 3 has nothing to tune"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(given: Any, trials: Any, sentence: str) -> None:
    configs = {"a": override(Config(), {"model.num_layers": 2})}
    with pytest.raises(UserError) as error:
        tuning.keys_of(SimpleNamespace(), configs, {"a": {"optimizer.eps": 1e-8}}, given, trials)  # type: ignore[arg-type]
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_of_the_tuning_are_refused(question: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _sweep(question, "late", "--first-seed=999999999")
    assert "--first-seed 999999999 gives seeds that are kept for tuning" in capsys.readouterr().err


def test_trials_of_optuna(question: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two keys; the config's own values first; the same again after a stop; a rate that diverges is told to it."""
    pytest.importorskip("optuna")
    arguments = ["--trials=6", "--tune", f"{tuning.RATE}=1e-4..1", "--tune", "optimizer.warmup_steps=10..100"]
    arguments += ["--set", "optimizer.warmup_steps=50", "--seeds=1"]
    assert _sweep(question, "trials", *arguments, "--dry-run")[0] == 0
    assert "26 runs, 2 at a time" in capsys.readouterr().out
    code, workdir = _sweep(question, "trials", *arguments)
    assert code == 0
    found = json.loads((workdir / "sweep.json").read_text())["tuning"]
    assert found["key"] == "optimizer.learning_rate, optimizer.warmup_steps"
    assert found["width"] == {}
    own = {"optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 50}
    assert found["chosen"]["narrow"] == own, "which is the best there is"
    values = {variant: [tuple(row["value"].values()) for row in rows] for variant, rows in found["tried"].items()}
    assert len(set(values["wide"])) == 6
    assert all(1e-4 <= rate <= 1 and warmup in range(10, 101) for rate, warmup in values["wide"])
    assert any(row["diverged"] == 2 and row["mean"] is None for rows in found["tried"].values() for row in rows)
    result = json.loads((workdir / "runs/wide/seed0/result.json").read_text())
    assert result["config"]["optimizer"]["warmup_steps"] == found["chosen"]["wide"]["optimizer.warmup_steps"]

    (workdir / "sweep.json").unlink()
    monkeypatch.setattr(workers, "run_all", None)
    assert _sweep(question, "trials", *arguments, "--report-only")[0] == 0
    assert json.loads((workdir / "sweep.json").read_text())["tuning"] == found


def test_trials_without_optuna_are_one_sentence(
    question: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit):
        _sweep(question, "trials", "--trials=3")
    assert "error: --trials needs Optuna: pip install 'transformer[search]'" in capsys.readouterr().err
