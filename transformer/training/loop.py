"""The training loop, read top to bottom."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer.config import Config, to_dict
from transformer.training import losses
from transformer.training.checkpoint import Checkpoints
from transformer.training.losses import Pair
from transformer.training.processes import any_process
from transformer.training.step import State
from transformer.training.writer import Writer


class Diverged(Exception):
    """Update after update was skipped, because the loss or its gradient was no number."""


class Stopped(Exception):
    """The run was asked to stop, and its state is saved."""


def train(
    config: Config,
    state: State,
    train_step: Callable[..., tuple[State, dict[str, Pair]]],
    batches: Iterator[dict[str, Any]],
    rate: Callable[[int], Any],
    evaluate: Callable[[State], dict[str, float]],
    checkpoints: Checkpoints,
    writer: Writer,
    on_first_step: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
    profile_steps: tuple[int, int] | None = None,
) -> tuple[State, dict[str, float]]:
    """Trains from `state.step` to `config.steps`; `batches` begins with the batch of `state.step`.

    Returns the last state, and what `evaluate` said of it: nothing where no step was left to do.

    The metrics of a step are fetched when the next one has been dispatched, so the device does not wait for the host.
    `profile_steps`: the first and the last step of a trace in `profile/`, for TensorBoard or Perfetto.
    Raises Stopped, with the state saved, soon after `stop()` is true in any process.
    """
    seed, start = np.uint32(config.seed), int(state.step)
    logging = config.logging
    meter = Meter(config.optimizer.max_skipped, checkpoints.workdir)
    saved = time.monotonic()
    validation: dict[str, float] = {}

    for step in range(start + 1, config.steps + 1):
        if profile_steps and step == profile_steps[0]:
            jax.profiler.start_trace(str(checkpoints.workdir / "profile"))
        batch = meter.waiting(batches)
        state, metrics = meter.running(train_step, state, batch, seed)
        meter.settle()
        meter.dispatched(step, batch, metrics)
        if step == start + 1:
            jax.block_until_ready(state.step)
            on_first_step()

        if profile_steps and step == profile_steps[1] and profile_steps[0] > start:
            jax.block_until_ready(state.step)
            jax.profiler.stop_trace()

        late = 0 < logging.checkpoint_minutes * 60 <= time.monotonic() - saved
        stopping, late = any_process(step, stop(), late)
        saving = step % logging.checkpoint_every == 0 or step == config.steps or late or stopping
        if step % logging.log_every == 0 or saving:  # a state is saved only after its losses were looked at
            meter.settle()
            line = meter.line()
            writer.write(step, **line, learning_rate=float(rate(step - 1)))
            writer.progress(step, line["loss"], line["tokens_per_second"])
        else:
            writer.progress(step)

        validation = {}
        if step == config.steps or (logging.evaluate_every and step % logging.evaluate_every == 0):
            validation = evaluate(state)
            writer.write(step, **{f"validation_{name}": value for name, value in validation.items()})
            if step < config.steps:
                writer.show(step, f"validation loss {validation['loss']:.4f}")
            meter.restart()
        if saving:
            checkpoints.save(step, state, to_dict(config), validation.get("loss"))
            saved = time.monotonic()
        if stopping and step < config.steps:
            checkpoints.finish()
            raise Stopped(f"stopped after step {step} of {config.steps}, which is saved")
    return state, validation


class Meter:
    """Adds up the metrics of the steps between two lines, and says where their time went.

    `data_share` is the share of the time that the host waited for a batch, `device_share` that it dispatched a step (a
    CPU computes meanwhile) or waited for the metrics of the one before; what is left is writing and saving.
    """

    def __init__(self, max_skipped: int, workdir: Path):
        self.max_skipped, self.workdir = max_skipped, workdir
        self.pending: tuple[int, Any, Any] | None = None
        self.skipped_in_a_row = 0
        self.restart()

    def restart(self) -> None:
        """Begins a new line."""
        self.metrics: list[dict[str, Any]] = []
        self.data = self.device = 0.0
        self.began = time.monotonic()

    def waiting(self, batches: Iterator[Any]) -> Any:
        """The next batch."""
        began = time.monotonic()
        batch = next(batches)
        self.data += time.monotonic() - began
        return batch

    def running(self, train_step: Callable[..., Any], *arguments: Any) -> Any:
        """What the step returns, which may not have been computed yet."""
        began = time.monotonic()
        returned = train_step(*arguments)
        self.device += time.monotonic() - began
        return returned

    def dispatched(self, step: int, batch: Any, metrics: Any) -> None:
        self.pending = (step, batch, metrics)

    def settle(self) -> None:
        """Waits for the pending step. Diverged: it is one of too many in a row that were skipped."""
        if self.pending is None:
            return
        (step, batch, metrics), self.pending = self.pending, None
        began = time.monotonic()
        fetched = jax.device_get(metrics)
        self.device += time.monotonic() - began
        self.metrics.append(fetched)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if fetched["skipped"][0] else 0
        if self.skipped_in_a_row >= self.max_skipped:
            raise Diverged(
                f"the loss or its gradient was no finite number for {self.skipped_in_a_row} steps in a row, up to step "
                f"{step}{_examples(batch)} (its batch is in {str(self._dump(step, batch))!r}): lower "
                "optimizer.learning_rate, or warm up longer with optimizer.warmup_steps"
            )

    def _dump(self, step: int, batch: Any) -> Path:
        path = self.workdir / f"skipped_batch_{step}_process_{jax.process_index()}.npz"
        arrays: Any = {key: _local(value) for key, value in batch.items()}
        np.savez(path, **arrays)
        return path

    def line(self) -> dict[str, float]:
        """The means since the last line, and begins a new one."""
        summed = jax.tree.map(lambda *xs: np.sum(xs, dtype=np.float64), *self.metrics)
        skipped = int(summed.pop("skipped")[0])
        seconds = time.monotonic() - self.began
        line = losses.means(summed) | {
            "skipped": skipped,
            "tokens_per_second": round(float(summed["loss"][1]) / seconds, 1),
            "seconds_per_step": seconds / len(self.metrics),
            "data_share": round(self.data / seconds, 4),
            "device_share": round(self.device / seconds, 4),
        }
        self.restart()
        return line


def _local(array: Any) -> np.ndarray:
    """This process's rows of an array of a batch."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    rows = {shard.index[0].start or 0: np.asarray(shard.data) for shard in array.addressable_shards}
    return np.concatenate([rows[start] for start in sorted(rows)])


def _examples(batch: Any) -> str:
    """The examples of a batch, where its rows know theirs."""
    if "example_ids" not in batch:
        return ""
    known = [int(i) for i in _local(batch["example_ids"]) if i >= 0]
    return f" with examples {', '.join(map(str, known[:8]))}{', ...' if len(known) > 8 else ''}"
