"""The training loop, read top to bottom."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import Config, to_dict
from transformer.training import losses
from transformer.training.checkpoint import Checkpoints
from transformer.training.losses import Pair
from transformer.training.step import State
from transformer.training.writer import Writer


class Diverged(Exception):
    """The loss is no longer a number."""


def train(
    config: Config,
    state: State,
    train_step: Callable[..., tuple[State, dict[str, Pair]]],
    batches: Iterator[dict[str, np.ndarray]],
    rate: Callable[[int], Any],
    evaluate: Callable[[State], dict[str, float]],
    checkpoints: Checkpoints,
    writer: Writer,
    on_first_step: Callable[[], None],
) -> State:
    """Trains from `state.step` to `config.steps`; `batches` begins with the batch of `state.step`.

    A step is dispatched before the metrics of those before it are fetched, so the device does not wait for the host.
    """
    seed = jnp.asarray(config.seed, jnp.uint32)
    start, pending, then = int(state.step), [], time.monotonic()
    log_every, evaluate_every = config.logging.log_every, config.logging.evaluate_every

    for step, batch in zip(range(start + 1, config.steps + 1), batches, strict=False):
        state, metrics = train_step(state, batch, seed)
        pending.append(metrics)
        if step == start + 1:
            jax.block_until_ready(state.step)
            on_first_step()

        saving = step % config.logging.checkpoint_every == 0 or step == config.steps
        if step % log_every == 0 or saving:  # a state is saved only after its losses were looked at
            summed = jax.device_get(pending)
            means = losses.means(jax.tree.map(lambda *xs: np.sum(xs, dtype=np.float64), *summed))
            if not np.isfinite(means["loss"]):
                raise Diverged(
                    f"the loss is {means['loss']} at step {step}: lower optimizer.learning_rate, or warm up longer "
                    "with optimizer.warmup_steps"
                )
            tokens = sum(float(m["loss"][1]) for m in summed)
            now = time.monotonic()
            speed = tokens / (now - then)
            writer.write(
                step, **means, learning_rate=float(rate(step - 1)), tokens_per_second=round(speed, 1),
                seconds_per_step=(now - then) / len(pending),
            )  # fmt: skip
            writer.progress(step, means["loss"], speed)
            pending, then = [], time.monotonic()
        else:
            writer.progress(step)

        if evaluate_every and step % evaluate_every == 0 and step < config.steps:
            validation = evaluate(state)
            writer.write(step, **{f"validation_{name}": value for name, value in validation.items()})
            writer.show(step, f"validation loss {validation['loss']:.4f}")
            then = time.monotonic()
        if saving:
            checkpoints.save(step, state, to_dict(config))
    return state
