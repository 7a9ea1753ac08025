"""Learning-rate schedules with warm-up (SCHEDULES), and the optimizer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from transformer.config import Config, OptimizerConfig
from transformer.errors import UserError
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
    """The learning rate as a function of the number of completed steps (0, 1, ...). UserError: no such schedule."""
    optimizer = config.optimizer
    if optimizer.schedule not in SCHEDULES:
        raise UserError(f"there is no optimizer.schedule {optimizer.schedule!r}: choose one of {', '.join(SCHEDULES)}")
    make = SCHEDULES[optimizer.schedule]
    return make(optimizer.learning_rate, optimizer.warmup_steps, config.steps, optimizer.final_rate)


def make_optimizer(
    config: Config, axes: Mapping[str, Sequence[str | None]] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clipping, Adam, decoupled weight decay of matrices, the schedule; and, to detect spikes, a record of gradient
    norms. `axes` are the axis names of each parameter (`Task.axes`), which weight decay needs.

    It is the chain of Optax's own transformations, with their state, in one pass over the parameters. Of
    `update(gradients, state, params, *, scale, norm, good)`, the gradients are those given times `scale` (default: 1),
    and `norm` is the norm of these (default: it is computed). Where `good` is false, the updates are 0 and the state
    stays as it was. The factors are changed for that, since a choice between old and new arrays would be one more pass
    over each."""
    optimizer = config.optimizer
    rate = schedule(config)
    if optimizer.weight_decay and axes is None:
        raise ValueError("weight decay is of matrices only: give the names of the parameters' axes")
    decayed = partial(_matrices, axes or {})
    chain = _chain(optimizer, rate, decayed)

    def update(
        gradients: Any, state: Any, params: Any, *, scale: Any = 1.0, norm: Any = None, good: Any = True, **_: Any
    ) -> tuple[Any, Any]:
        norm = optax.tree.norm(gradients) * scale if norm is None else norm
        adam = next(part for part in state if isinstance(part, optax.ScaleByAdamState))
        scale = scale * jnp.minimum(1, optimizer.clip_norm / norm) if optimizer.clip_norm else scale
        seen = jax.tree.map(lambda g: jnp.where(good, g, 0) * jnp.where(good, scale, 0), gradients)

        def moved(old: Any, new: Any, share: float) -> Any:
            kept, taken = jnp.where(good, share, 1), jnp.where(good, 1 - share, 0)
            return jax.tree.map(lambda x, y: kept * x + taken * y, old, new)

        mean = moved(adam.mu, seen, optimizer.b1)
        square = moved(adam.nu, jax.tree.map(jnp.square, seen), optimizer.b2)
        count = optax.safe_increment(adam.count)
        of_mean, of_square = (1 / (1 - jnp.float32(share) ** count) for share in (optimizer.b1, optimizer.b2))
        counts = [part.count for part in state if isinstance(part, optax.ScaleByScheduleState)]
        step = jnp.where(good, rate(counts[0]), 0)
        decays = decayed(params) if optimizer.weight_decay else jax.tree.map(lambda _: False, params)

        def change(mean: Array, square: Array, parameter: Array, decays: bool) -> Array:
            direction = mean * of_mean / (jnp.sqrt(square * of_square) + optimizer.eps)
            return -step * (direction + optimizer.weight_decay * parameter if decays else direction)

        def new(part: Any) -> Any:
            if isinstance(part, optax.ScaleByAdamState):
                return part._replace(count=jnp.where(good, count, part.count), mu=mean, nu=square)
            if isinstance(part, optax.ScaleByScheduleState):
                return part._replace(count=jnp.where(good, optax.safe_increment(part.count), part.count))
            if isinstance(part, Norms):
                return jax.tree.map(partial(jnp.where, good), part.after(norm), part)
            return part

        return jax.tree.map(change, mean, square, params, decays), tuple(new(part) for part in state)

    def init(params: Any) -> tuple[Any, ...]:
        norms = (Norms(jnp.zeros(()), jnp.zeros((), jnp.int32)),) if optimizer.max_spike else ()
        return *norms, *chain.init(params)

    return optax.GradientTransformationExtraArgs(init, update)


def _chain(optimizer: OptimizerConfig, rate: Schedule, decayed: Callable[[Any], Any]) -> optax.GradientTransformation:
    """What `make_optimizer` does at once, one after another, without the record of norms."""
    pieces = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    pieces.append(optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps))
    pieces += [optax.add_decayed_weights(optimizer.weight_decay, decayed)] if optimizer.weight_decay else []
    return optax.chain(*pieces, optax.scale_by_learning_rate(rate))


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

    def after(self, norm: Float[Array, ""]) -> "Norms":
        """With that of one more update."""
        count = jnp.minimum(self.seen + 1, RECENT)
        return Norms(self.mean + (norm - self.mean) / count, count)


def is_spike(state: Any, norm: Float[Array, ""], max_spike: float) -> Bool[Array, ""]:
    """Whether a gradient's norm is more than `max_spike` times the mean of recent ones; False before RECENT updates,
    since early gradients are large and change fast. It depends on the optimizer's state only."""
    norms = next(part for part in state if isinstance(part, Norms))
    return (norms.seen == RECENT) & (norm > max_spike * norms.mean)
