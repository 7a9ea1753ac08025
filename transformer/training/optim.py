"""Learning-rate schedules with warm-up, and the optimizer: SCHEDULES."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer.config import Config

Schedule = Callable[[Any], Any]


def inverse_sqrt(peak: float, warmup_steps: int, steps: int, final_rate: float) -> Schedule:
    """peak · min(s / w, sqrt(w / s)) at step s = 1, 2, ...

    With peak = (d_model · w)^-0.5 this is the paper's equation 3: d_model^-0.5 · min(s^-0.5, s · w^-1.5).
    It knows no end.
    """

    def rate(count: Any) -> Any:
        step = jnp.asarray(count, jnp.float32) + 1  # optax counts from 0
        return peak * jnp.minimum(step / warmup_steps, jnp.sqrt(warmup_steps / step))

    return rate


def cosine(peak: float, warmup_steps: int, steps: int, final_rate: float) -> Schedule:
    """Linear to the peak at step `warmup_steps`, then half a cosine down to `final_rate` of it at step `steps`."""
    decay = optax.cosine_decay_schedule(peak, max(steps - warmup_steps, 1), alpha=final_rate)

    def rate(count: Any) -> Any:
        step = jnp.asarray(count, jnp.float32) + 1  # optax counts from 0
        return jnp.where(step < warmup_steps, peak * step / warmup_steps, decay(step - warmup_steps))

    return rate


SCHEDULES: dict[str, Callable[[float, int, int, float], Schedule]] = {"inverse_sqrt": inverse_sqrt, "cosine": cosine}


def schedule(config: Config) -> Schedule:
    """The learning rate as a function of the steps done so far (0, 1, ...)."""
    optimizer = config.optimizer
    make = SCHEDULES[optimizer.schedule]
    return make(optimizer.learning_rate, optimizer.warmup_steps, config.steps, optimizer.final_rate)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled weight decay on matrices, the schedule."""
    optimizer = config.optimizer
    pieces = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    pieces.append(optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps))
    if optimizer.weight_decay:
        matrices = lambda params: jax.tree.map(lambda x: x.ndim >= 2, params)  # noqa: E731
        pieces.append(optax.add_decayed_weights(optimizer.weight_decay, mask=matrices))
    return optax.chain(*pieces, optax.scale_by_learning_rate(schedule(config)))
