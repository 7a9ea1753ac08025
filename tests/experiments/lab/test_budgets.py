"""What the reference spends, and how many steps that buys each variant."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.lab import budgets, pilots, sweep, workers
from transformer.config import Config, override
from transformer.errors import UserError

FAKE = str(Path(__file__).with_name("fake_question.py"))
SIZE = {"model.family": "decoder_only", "model.d_model": 16, "model.d_ff": 32, "model.num_heads": 2}
SIZE |= {"model.num_layers": 2, "model.vocab_size": 50, "data.max_len": 32, "data.buckets": [32], "steps": 1000}
BASE = override(Config(), SIZE | {"task": "language_model", "data.batch_tokens": 256})


def _changed(**changes: Any) -> Config:
    return override(BASE, {key.replace("__", "."): value for key, value in changes.items()})


def test_steps_are_left_alone() -> None:
    configs = {"a": BASE, "b": _changed(model__num_layers=4)}
    assert budgets.equalise(configs, "a", "steps") == configs


def test_tokens_are_positions_padding_included() -> None:
    configs = {"a": BASE, "large": _changed(data__batch_tokens=1024), "odd": _changed(data__batch_tokens=600)}
    found = budgets.equalise(configs, "a", "tokens")
    assert {name: config.steps for name, config in found.items()} == {"a": 1000, "large": 250, "odd": 427}
    as_long = {"steps": 250, "optimizer.warmup_steps": 1000}  # a quarter of 4,000
    assert found["large"] == override(configs["large"], as_long), "nothing else changes"
    cold = {"a": BASE, "cold": _changed(data__batch_tokens=1024, optimizer__warmup_steps=1)}
    assert budgets.equalise(cold, "a", "tokens")["cold"].optimizer.warmup_steps == 1


def test_flops_by_hand() -> None:
    """Forward 2 a weight and position, and 2 S (K + M) a query and head for attention; three times that in training."""
    width, inner, places, vocabulary = 16, 32, 256, 50
    layer = 2 * (4 * width**2 + 2 * width * inner) + 2 * 2 * 32 * (8 + 8)
    assert budgets.step_flops(BASE) == 3 * places * (2 * layer + 2 * vocabulary * width)
    deep = _changed(model__num_layers=8)
    steps = budgets.equalise({"a": BASE, "deep": deep}, "a", "flops")["deep"].steps
    assert steps == round(1000 * (2 * layer + 2 * vocabulary * width) / (8 * layer + 2 * vocabulary * width))


def test_flops_of_other_models_are_six_a_parameter_and_position() -> None:
    gru = _changed(model__family="recurrent_encoder_decoder", task="translation", model__positions="none")
    assert budgets.step_flops(gru, {"a/kernel": (3, 4), "b": (5,)}) == 6 * (12 + 5) * 256


def test_seconds_are_those_of_the_pilots() -> None:
    configs = {"a": BASE, "slow": BASE, "crawls": BASE}
    found = budgets.equalise(configs, "a", "seconds", {"a": 0.1, "slow": 0.25, "crawls": 1e6})
    assert [config.steps for config in found.values()] == [1000, 400, 1]


def test_bytes_are_those_of_the_texts_that_a_step_reads(tmp_path: Path) -> None:
    """By hand: 40 pairs in 5 batches of 8; an "é" is two bytes; a pair that is too long is left out."""
    for split, count in {"train": 40, "validation": 1, "test": 1}.items():
        long = ["x" * 99] * (split == "train")
        (tmp_path / f"{split}.en").write_text("".join(f"{line}\n" for line in ["abcdé"] * count + long))
        (tmp_path / f"{split}.de").write_text("".join(f"{line}\n" for line in ["abc"] * count + long))
    data = {"data.name": "files", "data.dir": str(tmp_path), "data.cache": str(tmp_path / "cache"), "steps": 100}
    data |= {"data.tokenizer": "bytes", "data.max_len": 16, "data.buckets": [16], "data.batch_tokens": 128}
    config = override(Config(), data)
    assert budgets.step_bytes(config) == 40 * (6 + 3) / 5
    wide = override(config, {"data.batch_tokens": 256})  # 3 batches, of which the last is not full
    price = {"a": budgets.step_bytes(config), "wide": budgets.step_bytes(wide)}
    found = budgets.equalise({"a": config, "wide": wide}, "a", "bytes", price)
    assert {name: config.steps for name, config in found.items()} == {"a": 100, "wide": 60}
    with pytest.raises(UserError, match="reads no text: use another --budget"):
        budgets.step_bytes(override(Config(), {"task": "image_classification", "data.name": "digits"}))


def test_a_sweep_of_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured by tasks of the sweep, once, and stand in sweep.json."""
    monkeypatch.setattr(workers, "run_all", _here)
    monkeypatch.setattr(pilots, "step_bytes", lambda config: {"learned": 50.0}.get(config.model.positions, 100.0))
    monkeypatch.setattr(run.report, "write", lambda folder, findings: ("", 0))
    arguments = [FAKE, f"--workdir={tmp_path}", "--steps=100", "--seeds=1", "--budget=bytes"]
    assert run.main(arguments) == 0
    budget = json.loads((tmp_path / "sweep.json").read_text())["budget"]
    assert budget["kind"] == "bytes"
    assert budget["steps"] == {name: 200 if name.startswith("learned") else 100 for name in budget["steps"]}
    config = json.loads((tmp_path / "runs/learned-full/seed0/result.json").read_text())["config"]
    base = json.loads((tmp_path / "sweep.json").read_text())["config"]
    assert config["optimizer"]["warmup_steps"] == 2 * base["optimizer"]["warmup_steps"]
    monkeypatch.setattr(sweep, "step_prices", None)
    assert run.main(arguments) == 0


def _here(tasks: Any, jobs: int, watcher: Any) -> None:
    for task in tasks:
        kind, value = workers.perform(task)
        (watcher.finished if kind == "finished" else watcher.failed)(task, value)


def test_a_sweep_of_equal_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the fake, learned positions take twice the time a step."""
    monkeypatch.setattr(workers, "run_all", _here)
    arguments = [FAKE, f"--workdir={tmp_path}", "--steps=100", "--seeds=1", "--budget=seconds"]
    assert run.main([*arguments, "--dry-run"]) == 0
    planned = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert (planned["sinusoidal-full"], planned["learned-full"], planned["none-window"]) == ("100", "50", "100")
    assert run.main(arguments) == 0
    assert not list(tmp_path.glob("pilots*"))
    steps = json.loads((tmp_path / "sweep.json").read_text())["budget"]["steps"]
    assert steps == {name: 50 if name.startswith("learned") else 100 for name in steps}
    kept = json.loads((tmp_path / "runs/learned-window/seed0/result.json").read_text())
    assert kept["config"]["steps"] == 50
    text = (tmp_path / "report.md").read_text()
    assert "the budget of the reference in training time" in text
    assert "| learned-full | 1,064 | 50 |" in text

    monkeypatch.setattr(sweep, "step_prices", None)  # a second time nothing is timed
    monkeypatch.setattr(run.report, "write", lambda folder, findings: ("", 0))
    (tmp_path / "runs/learned-window/seed0/result.json").unlink()
    capsys.readouterr()
    assert run.main(arguments) == 0
    assert json.loads((tmp_path / "runs/learned-window/seed0/result.json").read_text())["config"]["steps"] == 50
    with pytest.raises(SystemExit):
        run.main([*arguments[:-1], "--budget=flops"])
    message = capsys.readouterr().err
    assert "holds a sweep of equal seconds, not of equal flops: use --budget=seconds" in message
    other = tmp_path / "fake_question.py"
    other.write_text(Path(FAKE).read_text().replace('f"{positions}-{name}"', 'f"{positions}-{name}+"').replace(
        'REFERENCE = "sinusoidal-full"', 'REFERENCE = "sinusoidal-full+"'))  # fmt: skip
    with pytest.raises(SystemExit):
        run.main([str(other), *arguments[1:]])
    assert "holds a sweep of other variants than these" in capsys.readouterr().err


def test_ctrl_c_amid_the_pilots_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "run_all", interrupted)
    assert run.main([FAKE, f"--workdir={tmp_path}", "--budget=seconds"]) == os.EX_TEMPFAIL
    assert capsys.readouterr().err.splitlines()[-1] == run.INTERRUPTED
    assert not list(tmp_path.glob("pilots*"))
