"""The training loop."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from transformer.config import Config, to_dict
from transformer.errors import Stopped
from transformer.training.checkpoint import Checkpoints
from transformer.training.meter import Meter
from transformer.training.processes import agreement, every_process
from transformer.training.profiling import Program
from transformer.training.step import State
from transformer.training.writer import Writer


def train(
    config: Config,
    state: State,
    train_step: Program,
    peak: float,
    batches: Iterator[dict[str, Any]],
    rate: Callable[[State], float],
    evaluate: Callable[[State], dict[str, float]],
    checkpoints: Checkpoints,
    writer: Writer,
    on_first_step: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
    profile_steps: tuple[int, int] | None = None,
    again: bool = False,
) -> tuple[State, dict[str, float]]:
    """Trains from `state.step` to `config.steps`; `batches` begins with the batch of `state.step`. Returns the last
    state, and the result of `evaluate` for it. A state is saved before it is evaluated, so that nothing is lost if that
    fails; with `again` (`is_evaluated_first`), the first state is evaluated before any step. The metrics of a step are
    fetched after the next step is dispatched, so that the device does not wait for the host. `peak`: FLOPs per second
    of all devices together. `rate`: the learning rate of the update that produced a state. `profile_steps`: the first
    and the last step of a trace in `profile/`, for TensorBoard or Perfetto. Raises Stopped, after saving the state,
    soon after `stop()` is true in any process."""
    seed, start = np.uint32(config.seed), int(state.step)
    logging = config.logging
    meter = Meter(config.optimizer, checkpoints.workdir, train_step.cost, peak)
    agreed, saved = agreement(), time.monotonic()

    def validated(step: int) -> dict[str, float]:
        found = evaluate(state)
        writer.write(step, **{f"validation_{name}": value for name, value in found.items()})
        if step < config.steps:
            writer.show(step, f"validation loss {found['loss']:.4f}")
        checkpoints.set_loss(step, found["loss"])
        meter.restart()
        return found

    validation = validated(start) if again else {}
    for step in range(start + 1, config.steps + 1):
        if profile_steps and step == profile_steps[0]:
            jax.profiler.start_trace(str(checkpoints.workdir / "profile"))
        batch = meter.waiting(batches)
        state, metrics = meter.running(train_step, state, batch, seed)
        meter.fetch_pending()
        meter.dispatched(step, batch, metrics)
        if step == start + 1:
            jax.block_until_ready(state.step)
            on_first_step()

        if profile_steps and step == profile_steps[1]:
            jax.block_until_ready(state.step)
            jax.profiler.stop_trace()

        late = jax.process_index() == 0 and 0 < logging.checkpoint_minutes * 60 <= time.monotonic() - saved  # one clock
        now = agreed(step, stopping=stop(), late=late)
        stopping = now["stopping"]
        saving = step % logging.checkpoint_every == 0 or step == config.steps or any(now.values())
        if step % logging.log_every == 0 or saving:  # a state is saved only after its metrics were checked
            meter.fetch_pending()
            line = meter.line()
            writer.write(step, **line, learning_rate=rate(state))
            writer.progress(step, line)
        else:
            writer.progress(step)

        if saving:
            checkpoints.save(step, state, to_dict(config))
            saved = time.monotonic()
        if stopping and step < config.steps:
            checkpoints.finish()
            raise Stopped(f"stopped after step {step} of {config.steps}, which is saved")
        if _evaluates(config, step):
            validation = validated(step)
    return state, validation


def is_evaluated_first(config: Config, step: int, checkpoints: Checkpoints) -> bool:
    """Whether a run that goes on at this step evaluates before it trains: it has finished, or was stopped or killed
    between a save and the evaluation."""
    if step in (0, config.steps) or not _evaluates(config, step):
        return step == config.steps
    return not every_process(step in checkpoints.losses)


def _evaluates(config: Config, step: int) -> bool:
    every = config.logging.evaluate_every
    return step == config.steps or bool(every and step % every == 0)
