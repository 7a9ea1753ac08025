"""The loop over a step that only counts: what it writes, saves, skips and stops."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from tests.training.tiny import points
from transformer.config import Config, override
from transformer.resuming import CHANGEABLE
from transformer.training import loop, meter
from transformer.training.checkpoint import Checkpoints
from transformer.training.processes import AGREE_EVERY, Agreement
from transformer.training.profiling import Cost, Program
from transformer.training.step import State
from transformer.training.writer import Writer


class Saved(Checkpoints):
    """Checkpoints that only remember."""

    losses: Any = None

    def __init__(self, workdir: Path):
        self.workdir, self.saved, self.evaluated, self.finished = workdir, [], {}, False

    def save(self, step: int, state: State, config: Any) -> None:
        assert int(state.step) == step
        self.saved.append(step)

    def set_loss(self, step: int, loss: float) -> None:
        self.evaluated[step] = loss

    def finish(self) -> None:
        self.finished = True


class Counting(Program):
    """A step that counts; those of odd batches cost twice as much."""

    def __init__(self, bad: Callable[[int], bool], formula: bool):
        self.bad, self.formula = bad, formula

    def __call__(self, state: State, batch: Any, seed: Any) -> Any:
        good = 0.0 if self.bad(int(state.step)) else 1.0
        pairs = {"loss": (2.0 * good, good), "gradient_norm": (3.0 * good, good), "skipped": (1 - good, 1.0)}
        metrics = {name: (np.float32(total), np.float32(weight)) for name, (total, weight) in pairs.items()}
        return State(state.step + 1, state.params, state.optimizer), metrics

    def cost(self, batch: Any) -> Cost:
        large = 1 + int(batch["inputs"][0, 0]) % 2
        return Cost(9e6 * large, 6e6 * large if self.formula else None, 500 * large)


def _batches(start: int) -> Iterator[dict[str, Any]]:
    while True:
        yield {"inputs": np.full((2, 3), start), "example_ids": np.array([start * 10, -1])}
        start += 1


def _run(
    workdir: Path,
    bad: Callable[[int], bool] = lambda step: False,
    start: int = 0,
    stop: Callable[[], bool] = lambda: False,
    formula: bool = True,
    evaluate: Callable[[State], dict[str, float]] = lambda state: {"loss": float(state.step)},
    saved: Saved | None = None,
    again: bool = False,
    quiet: bool = True,
    **changes: Any,
) -> tuple[Saved, list[dict[str, Any]]]:
    usual = {"steps": 10, "logging.log_every": 4, "logging.checkpoint_every": 5}
    config = override(Config(), usual | {key.replace("__", "."): value for key, value in changes.items()})
    saved, writer = saved or Saved(workdir), Writer(workdir, start, config.steps, quiet, again=again)
    state = State(jnp.int32(start), {}, {})
    try:
        arguments: Any = (evaluate, saved, writer, lambda: None, stop, None, again)
        step = Counting(bad, formula)
        loop.train(config, state, step, 1e9, _batches(start), lambda state: float(state.step), *arguments)
    finally:
        path = workdir / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return saved, [line for line in lines if "loss" in line]


def test_it_saves_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    saved, lines = _run(tmp_path, steps=12)
    assert saved.saved == [5, 10, 12]
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12]
    assert {line["loss"] for line in lines} == {2.0}
    for line in lines:
        assert 0 <= line["data_share"] + line["device_share"] <= 1.001
        assert line["skipped"] == 0


@pytest.mark.parametrize("formula", [True, False])
def test_lines_say_what_a_step_costs(tmp_path: Path, formula: bool) -> None:
    """Steps of 1, 2, 1, 2 times 9 (by the formula 6) million FLOPs, on devices of a thousand million a second."""
    _, lines = _run(tmp_path, formula=formula, steps=4)
    (line,) = lines
    assert line["flops"] == 1.5 * 9e6
    assert line.get("model_flops") == (1.5 * 6e6 if formula else None)
    counted = 1.5 * (6e6 if formula else 9e6)
    assert line["mfu"] == pytest.approx(counted / (line["seconds_per_step"] * 1e9), rel=1e-3, abs=1e-4)
    assert line["memory_bytes"] == 1000
    assert line["learning_rate"] == 4.0


def test_it_saves_after_minutes(tmp_path: Path) -> None:
    saved, _ = _run(tmp_path, logging__checkpoint_minutes=1e-9, logging__checkpoint_every=1000, steps=3)
    assert saved.saved == [1, 2, 3]


def test_a_checkpoint_knows_its_validation_loss(tmp_path: Path) -> None:
    saved, _ = _run(tmp_path, logging__evaluate_every=5, steps=12)
    assert saved.evaluated == {5: 5.0, 10: 10.0, 12: 12.0}
    assert _validations(tmp_path) == [5.0, 10.0, 12.0]


def _validations(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


def test_it_saves_before_it_evaluates(tmp_path: Path) -> None:
    """An evaluation that fails loses nothing; the run that goes on begins with it."""
    saved = Saved(tmp_path)

    def broken(state: State) -> dict[str, float]:
        assert saved.saved[-1] == int(state.step)
        if int(state.step) == 5:
            raise MemoryError
        return {"loss": 1.0}

    with pytest.raises(MemoryError):
        _run(tmp_path, logging__evaluate_every=5, evaluate=broken, saved=saved)
    assert (saved.saved, saved.evaluated) == ([5], {})
    later, _ = _run(tmp_path, start=5, again=True, logging__evaluate_every=5)
    assert later.evaluated == {5: 5.0, 10: 10.0}
    assert _validations(tmp_path) == [5.0, 10.0]


@pytest.mark.parametrize(
    ("step", "known", "first"), [(0, [], False), (4, [], False), (5, [], True), (5, [5], False), (10, [10], True)]
)
def test_an_evaluation_that_is_missing_comes_first(tmp_path: Path, step: int, known: list[int], first: bool) -> None:
    """Or that of a run that has finished."""
    config = override(Config(), {"steps": 10, "logging.evaluate_every": 5})
    checkpoints = Saved(tmp_path)
    checkpoints.losses = dict.fromkeys(known, 1.0)
    assert loop.is_evaluated_first(config, step, checkpoints) == first


def test_asked_to_stop_it_saves_and_leaves_the_evaluation_for_later(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    asked = iter([False, False, False, False, True])
    with pytest.raises(loop.Stopped):
        _run(tmp_path, stop=lambda: next(asked), saved=saved, logging__evaluate_every=5)
    assert (saved.saved, saved.evaluated) == ([5], {})


def test_skipped_steps_are_counted_and_leave_the_means_alone(tmp_path: Path) -> None:
    _, lines = _run(tmp_path, bad=lambda step: step in (1, 2, 6), optimizer__max_skipped=3)
    assert [line["skipped"] for line in lines] == [2, 0, 1, 0]
    assert {line["loss"] for line in lines} == {2.0}
    assert {line["gradient_norm"] for line in lines} == {3.0}


def test_where_all_steps_were_skipped_there_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Null in metrics.jsonl, no number in the events and no zero in what is said."""
    often: dict[str, Any] = {"logging__log_every": 2, "logging__checkpoint_every": 8, "steps": 8}
    _, lines = _run(tmp_path, bad=lambda step: step in (1, 2, 6, 7), quiet=False, **often)
    assert [line["skipped"] for line in lines] == [1, 1, 0, 2]
    assert [line["loss"] for line in lines] == [2.0, 2.0, 2.0, None]
    assert [line["gradient_norm"] for line in lines] == [3.0, 3.0, 3.0, None]
    found = {(tag, step): value for tag, step, value in points(tmp_path)}
    assert math.isnan(found["training/loss", 8])
    assert found["training/loss", 6] == 2.0
    said = capsys.readouterr().err.splitlines()
    assert "no loss, 0 tokens/s, skipped steps: 2" in next(line for line in said if "step 8/8" in line)
    assert "loss 2.0000" in next(line for line in said if "step 6/8" in line)
    assert "skipped" not in next(line for line in said if "step 6/8" in line)


def test_a_validation_that_is_no_number_is_null(tmp_path: Path) -> None:
    saved, _ = _run(tmp_path, evaluate=lambda state: {"loss": math.nan}, logging__evaluate_every=5)
    assert _validations(tmp_path) == [None, None]
    assert math.isnan(saved.evaluated[5])


def test_too_many_in_a_row_end_the_run_with_the_batch(tmp_path: Path) -> None:
    sentence = (
        r"for 3 steps in a row, from step 5 to step 7 with examples 60 "
        r"\(its batch is in '.*skipped_batch_7_process_0\.npz'\)"
    )
    with pytest.raises(meter.Diverged, match=sentence):
        _run(tmp_path, bad=lambda step: step >= 4, optimizer__max_skipped=3)
    dump = np.load(tmp_path / "skipped_batch_7_process_0.npz")
    np.testing.assert_array_equal(dump["inputs"], np.full((2, 3), 6))


def test_a_batch_that_cannot_be_written_hides_no_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meter.np, "savez", full)
    with pytest.raises(meter.Diverged, match=r"to step 7 .*could not be written to '.*npz': No space left on device"):
        _run(tmp_path, bad=lambda step: step >= 4, optimizer__max_skipped=3)


@pytest.mark.parametrize(
    ("changes", "steps", "said"),
    [
        ({}, [], "lower optimizer.learning_rate or optimizer.clip_norm, with --change=optimizer.learning_rate,"
                 "optimizer.clip_norm, to begin again; or train a new run with optimizer.warmup_steps or "
                 "optimizer.max_spike"),
        ({"optimizer.clip_norm": 0.0}, [5], "lower optimizer.learning_rate, with --change=optimizer.learning_rate, to "
                                            "go on from step 5; or"),
        ({"optimizer.max_spike": 2.0, "optimizer.clip_norm": 0.0}, [5, 10],
         "lower optimizer.learning_rate or optimizer.max_spike, with --change=optimizer.learning_rate,"
         "optimizer.max_spike, to go on from step 10 (from step 5, if you first move checkpoints/10 elsewhere); or "
         "train a new run with optimizer.warmup_steps"),
    ],
)  # fmt: skip
def test_the_advice_names_what_can_be_changed(changes: dict[str, Any], steps: list[int], said: str) -> None:
    config = override(Config(), changes)
    assert meter.advice(config.optimizer, steps).startswith(said)
    assert set(re.findall(r"optimizer\.[a-z_]+", meter.advice(config.optimizer, steps))) <= set(CHANGEABLE)


def test_asked_to_stop_it_saves_and_says_so(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    held: list[Saved] = []
    original = Saved.finish

    def finish(self: Saved) -> None:
        held.append(self)
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saved, "finish", finish)
        with pytest.raises(loop.Stopped, match="stopped after step 3 of 10, which is saved"):
            _run(tmp_path, stop=lambda: next(asked))
    assert held[0].saved == [3]
    assert held[0].finished


def test_while_processes_agree_the_device_has_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the others are asked, a step is dispatched whose metrics were not waited for; each step is waited for
    once; and nothing goes over the devices."""
    happened: list[tuple[str, int]] = []
    fetch, count = jax.device_get, Counting.__call__

    class Board:
        def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
            happened.append(("told", int(key.split("/")[-2])))

        def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
            happened.append(("asked", int(folder.split("/")[-2])))
            return [(f"{folder}stopping", "")] if ("told", happened[-1][1]) in happened else []

    def counted(self: Counting, state: State, batch: Any, seed: Any) -> Any:
        happened.append(("dispatched", int(state.step) + 1))
        return count(self, state, batch, seed)

    def fetched(tree: Any) -> Any:
        happened.append(("fetched", sum(what == "fetched" for what, _ in happened) + 1))
        return fetch(tree)

    def blocked(*_: Any) -> Any:
        raise AssertionError("the processes waited for the devices")

    monkeypatch.setattr(loop, "agreement", lambda: Agreement(Board()))
    monkeypatch.setattr(Counting, "__call__", counted)
    monkeypatch.setattr(meter.jax, "device_get", fetched)
    monkeypatch.setattr(multihost_utils, "process_allgather", blocked)
    stop = iter(step == 11 for step in itertools.count(1))
    with pytest.raises(loop.Stopped, match="stopped after step 16 of 30, which is saved"):
        _run(tmp_path, stop=lambda: next(stop), steps=30, logging__log_every=100, logging__checkpoint_every=100)
    assert ("told", 16) in happened
    for asked in (AGREE_EVERY, 2 * AGREE_EVERY):
        before = happened[: happened.index(("asked", asked))]
        assert ("dispatched", asked) in before
        assert ("fetched", asked) not in before
    assert [number for what, number in happened if what == "fetched"] == list(range(1, 17))


def test_resumed_it_begins_after_its_state(tmp_path: Path) -> None:
    saved, lines = _run(tmp_path, start=7)
    assert saved.saved == [10]
    assert [line["step"] for line in lines] == [8, 10]
