"""What a sweep would cost, said before it is begun."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.lab import pilots
from experiments.lab.single import Run
from transformer.config import Config, override

FAKE = str(Path(__file__).with_name("fake_question.py"))


def runs(count: int, steps: int = 200) -> list[Run]:
    config = override(Config(), {"steps": steps, "data.batch_tokens": 1000})
    return [Run(FAKE, "wide", seed, config, {"model.d_model": 8}, Path(f"seed{seed}")) for seed in range(count)]


def test_seeds_after_the_first_find_its_programs() -> None:
    """By hand: 5 s to compile the step, 3 s around each, and 200 steps of 0.5 s and 7 s of measuring for each."""
    both = {"validation_seconds": 2.0, "flops": 6e9, "parameters": 50}
    cold = both | {"around": 10.0, "compiling": 6.0, "seconds_per_step": 0.9, "measure_seconds": 8.0, "bytes": 300}
    warm = both | {"around": 3.0, "compiling": 1.0, "seconds_per_step": 0.5, "measure_seconds": 7.0, "bytes": 200}
    (found,) = pilots.expect(runs(4), {"wide": (cold, warm)})
    assert found.seconds == 5 + 4 * (3 + 200 * 0.5 + 7)
    assert found.flops == 200 * 6e9
    validating = [
        dataclasses.replace(run, config=override(run.config, {"logging.evaluate_every": 50})) for run in runs(4)
    ]
    (amid,) = pilots.expect(validating, {"wide": (cold, warm)})
    assert amid.seconds == found.seconds + 4 * 3 * 2.0, "the fourth ends the run"
    assert (found.variant, found.bytes, found.parameters) == ("wide", 300, 50)


def test_wall_time_is_shared_by_the_jobs_but_a_run_is_not() -> None:
    rows = [
        pilots.Expected("a", {}, 9, 1, 1e9, 600.0, 2**20),
        pilots.Expected("b", {"seed": 1}, 9, 1, 1e9, 60.0, 2**20),
    ]
    assert "6 runs, 2 at a time: about 5.5 minutes" in pilots.table(rows, 6, 2)
    assert "6 runs, 64 at a time: about 3.3 minutes" in pilots.table(rows, 6, 64)
    assert "differs in" in pilots.table(rows, 6, 2)
    assert "seed=1" in pilots.table(rows, 6, 2)


def test_a_dry_run_trains_nothing_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [FAKE, f"--workdir={tmp_path}", "--steps=100", "--seeds=2", "--jobs=2"]
    assert run.main([*arguments, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for variant in ("sinusoidal-full", "learned-window", "none-window"):
        assert variant in printed
    assert "model.positions=learned" in printed
    assert "1,064" in printed, "parameters of the variants with a table"
    assert "12 runs, 2 at a time" in printed
    assert not list(tmp_path.glob("runs/*/*/result.json"))
    assert run.main(arguments) == 0, "the sweep itself begins as if nothing had been"


def test_a_variant_that_fails_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "none-full/101=raise")
    assert run.main([FAKE, f"--workdir={tmp_path}", "--steps=100", "--dry-run"]) == 1
    captured = capsys.readouterr()
    assert "pilot of none-full: FAILED: ValueError" in captured.err
    assert "none-window" in captured.out


def test_the_time_of_a_step_is_the_median_of_several_runs(tmp_path: Path) -> None:
    """Of runs on the same batches, another one being the last each time; what fails is tried once."""
    config = override(Config(), {"steps": 1000, "seed": 7})
    variants = [Run(FAKE, name, 0, config, {}, tmp_path / name) for name in ("wide", "deep", "lost")]
    times = {"wide": iter([0.9, 0.2, 0.3]), "deep": iter([0.5, 0.6, 0.4])}
    seen, order = [], []

    def execute(tasks: Any, watcher: Any) -> None:
        order.append([task.short.variant for task in tasks])
        for task in tasks:
            seen.append((task.short.config.steps, task.short.config.seed, task.short.config.logging.log_every))
            if task.short.variant in times:
                task.folder.mkdir(parents=True)
                result = {"price": next(times[task.short.variant])}
                (task.folder / "result.json").write_text(json.dumps(result))

    assert pilots.step_prices(variants, execute, tmp_path, "seconds") == {"wide": 0.3, "deep": 0.5}
    assert order == [["wide", "deep", "lost"], ["deep", "wide"], ["wide", "deep"]]
    assert set(seen) == {(pilots.TIMED, pilots.SEEDS[0], pilots.LINE)}
    assert not list(tmp_path.glob("pilots*"))


def test_a_timing_is_the_median_of_its_lines_but_the_first(tmp_path: Path) -> None:
    own = dataclasses.replace(runs(1, steps=7)[0], folder=tmp_path / "own")
    assert own.seconds_per_step() is None
    own.folder.mkdir()
    lines = [{"step": i, "seconds_per_step": value} for i, value in enumerate([9.0, 0.1, 0.5, 0.2])]
    (own.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert own.seconds_per_step() == 0.2
