"""Learning-rate schedules with warm-up (SCHEDULES), and the optimizer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from transformer.config import Config
from transformer.training.sharding import parameter_of, path_of

Schedule = Callable[[Any], Any]


def inverse_sqrt(peak: float, warmup_steps: int, steps: int, final_rate: float) -> Schedule:
    """peak · min(s / w, sqrt(w / s)) at step s = 1, 2, ..., whatever the number of steps. With peak = (d_model ·
    w)^-0.5 it is the paper's equation 3: d_model^-0.5 · min(s^-0.5, s · w^-1.5)."""

    def rate(count: Any) -> Any:
        step = jnp.asarray(count, jnp.float32) + 1  # optax counts from 0
        return peak * jnp.minimum(step / warmup_steps, jnp.sqrt(warmup_steps / step))

    return rate


def cosine(peak: float, warmup_steps: int, steps: int, final_rate: float) -> Schedule:
    """Linear to the peak at step `warmup_steps`, then half a cosine down to peak · `final_rate` at step `steps`."""
    decay = optax.cosine_decay_schedule(peak, max(steps - warmup_steps, 1), alpha=final_rate)

    def rate(count: Any) -> Any:
        step = jnp.asarray(count, jnp.float32) + 1  # optax counts from 0
        return jnp.where(step < warmup_steps, peak * step / warmup_steps, decay(step - warmup_steps))

    return rate


SCHEDULES: dict[str, Callable[[float, int, int, float], Schedule]] = {"inverse_sqrt": inverse_sqrt, "cosine": cosine}


def schedule(config: Config) -> Schedule:
    """The learning rate as a function of the number of completed steps (0, 1, ...)."""
    optimizer = config.optimizer
    make = SCHEDULES[optimizer.schedule]
    return make(optimizer.learning_rate, optimizer.warmup_steps, config.steps, optimizer.final_rate)


def make_optimizer(
    config: Config, axes: Mapping[str, Sequence[str | None]] | None = None
) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled weight decay of matrices, the schedule; and, to detect spikes, a record of gradient
    norms. `axes` are the axis names of each parameter (`Task.axes`), which weight decay needs."""
    optimizer = config.optimizer
    pieces = [_remember_norms()] if optimizer.max_spike else []
    if optimizer.clip_norm:
        pieces.append(optax.clip_by_global_norm(optimizer.clip_norm))
    pieces.append(optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps))
    if optimizer.weight_decay:
        if axes is None:
            raise ValueError("weight decay is of matrices only: give the names of the parameters' axes")
        pieces.append(optax.add_decayed_weights(optimizer.weight_decay, mask=partial(_matrices, axes)))
    return optax.chain(*pieces, optax.scale_by_learning_rate(schedule(config)))


def _matrices(axes: Mapping[str, Sequence[str | None]], params: Any) -> Any:
    """Which parameters are matrices and tables: two axes, not counting that of stacked layers."""

    def is_matrix(path: Any, _: Array) -> bool:
        return sum(name != "layers" for name in axes[parameter_of(path_of(path))]) > 1

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def current_rate(config: Config) -> Callable[[Any], float]:
    """The learning rate of the last update, from the optimizer's state; skipped steps are not updates."""
    rate = schedule(config)

    def of(state: Any) -> float:
        scheduled = lambda path, _: path[-1] == optax.tree_utils.NamedTupleKey("ScaleByScheduleState", "count")  # noqa: E731
        return float(rate(max(int(optax.tree.get(state, "count", filtering=scheduled)) - 1, 0)))

    return of


RECENT = 50  # updates in the running mean of gradient norms


class Norms(NamedTuple):
    """Norms of the gradients before clipping, without those of skipped updates."""

    mean: Float[Array, ""]  # of all at first, then m + (norm - m) / RECENT
    seen: Int[Array, ""]  # at most RECENT


def _remember_norms() -> optax.GradientTransformation:
    """Leaves gradients unchanged; its state is `Norms`."""

    def update(grads: Any, norms: Norms, params: Any = None) -> tuple[Any, Norms]:
        count = jnp.minimum(norms.seen + 1, RECENT)
        return grads, Norms(norms.mean + (optax.tree.norm(grads) - norms.mean) / count, count)

    return optax.GradientTransformation(lambda params: Norms(jnp.zeros(()), jnp.zeros((), jnp.int32)), update)


def is_spike(state: Any, norm: Float[Array, ""], max_spike: float) -> Bool[Array, ""]:
    """Whether a gradient's norm is more than `max_spike` times the mean of recent ones; False before RECENT updates,
    since early gradients are large and change fast. It depends on the optimizer's state only."""
    norms = next(part for part in state if isinstance(part, Norms))
    return (norms.seen == RECENT) & (norm > max_spike * norms.mean)
