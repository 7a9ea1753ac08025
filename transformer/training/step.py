"""The training state, and the compiled steps."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from transformer.training import losses
from transformer.training.losses import Pair
from transformer.training.optim import is_spike
from transformer.training.sharding import Layout

Batch = Mapping[str, Any]
# loss(params, batch, seed, step, rows) -> metrics with a "loss"; seed None = deterministic; `rows` are the indices of
# the rows in the global batch
Loss = Callable[..., dict[str, Pair]]


class State(NamedTuple):
    """All that training changes. The order of the data and dropout are functions of the step and the seed."""

    step: Int[Array, ""]
    params: Any
    optimizer: Any


def make_init(
    init: Callable[[Array], Any], optimizer: optax.GradientTransformation, layout: Layout
) -> Callable[..., State]:
    """`create(seed) -> State`, compiled so that each device creates only its shard of the state."""

    def create(seed: Array) -> State:
        params = init(jax.random.key(seed, impl="threefry2x32"))
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    shapes = jax.eval_shape(create, jax.ShapeDtypeStruct((), jnp.uint32))
    return jax.jit(create, out_shardings=layout.shardings(shapes))


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    layout: Layout,
    accumulate: int = 1,
    max_spike: float = 0.0,
) -> Callable[[State, Batch, Array], tuple[State, dict[str, Pair]]]:
    """One optimizer step over a batch, or over its `accumulate` micro-batches in sequence. The loss is the sum over the
    whole batch, divided once by its weight, so it does not depend on the number of devices or micro-batches; nor do
    dropout masks. If the loss or the gradient is not finite, or the gradient is a spike (`optim.is_spike`; `max_spike`
    above 0), parameters and optimizer state are unchanged, the other metrics are 0 with weight 0, and "skipped" is
    1.

    Over "data", gradients are added once a step, after the last micro-batch: until then each device has the sum of its
    own rows (`_can_be_reduced_once` has the exception). Over "fsdp" they are added in every micro-batch, because a
    device has room for its share of a gradient only; the weights, as many bytes, are gathered there too."""

    def summed(params: Any, batch: Batch, seed: Array, step: Array, rows: Array) -> tuple[Any, dict[str, Pair]]:

        def total(params: Any) -> tuple[Array, dict[str, Pair]]:
            metrics = loss(params, batch, seed, step, rows)
            return metrics["loss"][0], metrics

        grads, metrics = jax.grad(total, has_aux=True)(params)
        # By their specs, which are valid on all devices and on the part of them that shares a place on "data".
        specs = jax.tree.map(lambda sharding: sharding.spec, layout.shardings(grads))
        return jax.tree.map(lax.with_sharding_constraint, grads, specs), metrics

    def accumulated(params: Any, batch: Batch, seed: Array, step: Array, rows: Array) -> tuple[Any, dict[str, Pair]]:
        """Row r is in micro-batch r mod `accumulate`, so that each device splits its own rows."""

        def cut(x: Array) -> Array:
            x = x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
            return nn.with_logical_constraint(x, (None, "rows") + (None,) * (x.ndim - 2))

        def one(so_far: Any, micro: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, so_far, summed(params, micro[0], seed, step, micro[1])), None

        parts = jax.tree.map(cut, (dict(batch), rows))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(lambda: summed(params, first[0], seed, step, first[1]))
        return lax.scan(one, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)[0]

    gradients = summed if accumulate == 1 else accumulated
    if accumulate > 1 and _can_be_reduced_once(layout):
        gradients = _reduced_once(accumulated, layout)

    def train_step(state: State, batch: Batch, seed: Array) -> tuple[State, dict[str, Pair]]:
        with layout.tracing():
            grads, metrics = gradients(state.params, dict(batch), seed, state.step, jnp.arange(_rows(batch)))
            total, weight = metrics["loss"]
            scale = 1 / jnp.maximum(weight, 1)
            norm = optax.tree.norm(grads) * scale
            good = jnp.isfinite(total) & jnp.isfinite(norm)
            if max_spike:
                good &= ~is_spike(state.optimizer, norm, max_spike)
            told = {"scale": scale, "norm": norm, "good": good}
            updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params, **told)
            state = State(state.step + 1, optax.apply_updates(state.params, updates), optimizer_state)
            metrics = metrics | {"gradient_norm": (norm, jnp.ones(()))}
            metrics = jax.tree.map(lambda x: jnp.where(good, x, 0), metrics)
            metrics["skipped"] = (1 - good.astype(jnp.float32), jnp.ones(()))
            return lax.with_sharding_constraint((state, metrics), (layout.shardings(state), layout.replicated))

    # The state keeps the sharding with which it was created or restored.
    return jax.jit(train_step, in_shardings=(None, layout.rows, layout.replicated), donate_argnums=0)


def _can_be_reduced_once(layout: Layout) -> bool:
    """Whether gradients are added over "data", and each place on it can be computed by itself: at most one other axis
    has several devices. With two, XLA's partitioner (of JAX 0.10 and 0.12) ends the process at the lookup in a table
    that one of them splits, of tokens that the other splits (a failed check in `ExpandDeviceGroupsWithIota`)."""
    others = [axis for axis, size in layout.mesh.shape.items() if axis != "data" and size > 1]
    return layout.mesh.shape["data"] > 1 and len(others) < 2


def _reduced_once(gradients: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """`gradients(params, batch, seed, step, rows)` of each place on "data" by itself, then the sum of them. The other
    axes that have devices stay the partitioner's; without any, the program is that of one device, kernels included."""
    manual = {axis for axis, size in layout.mesh.shape.items() if axis == "data" or size == 1}

    def of_one_place(*arguments: Any) -> Any:
        apart = [(name, _without(manual, axes)) for name, axes in nn.get_logical_axis_rules()]
        with nn.logical_axis_rules(apart):
            return lax.psum(gradients(*arguments), "data")

    whole, split = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        of_one_place,
        in_specs=(whole, split, whole, whole, split),
        out_specs=whole,
        axis_names=manual,
        check_vma=False,  # otherwise the gradient of what all devices hold is added where it is computed
    )


def _without(some: set[str], axes: Any) -> Any:
    """Mesh axes, as in a rule, without some."""
    if isinstance(axes, tuple):
        return tuple(axis for axis in axes if axis not in some)
    return None if axes in some else axes


def make_eval_step(metrics: Callable[[Any, Any], Any], layout: Layout) -> Callable[[Any, Batch], Any]:
    """What a model says of a batch: metrics, summed (`Task.loss`) or of each row (`Task.row_metrics`), or what it
    predicts. Parameters keep their sharding."""

    def eval_step(params: Any, batch: Batch) -> Any:
        with layout.tracing():
            return metrics(params, batch)

    return jax.jit(eval_step, in_shardings=(None, layout.rows), out_shardings=layout.replicated)


def _rows(batch: Batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def in_turn(
    eval_step: Callable[[Any, Batch], dict[str, Any]], params: Any, batches: Iterable[Batch]
) -> Iterator[dict[str, Any]]:
    """Metrics of each batch. Only one batch is on the devices at a time, and the next is prepared meanwhile.
    Independent programs may start in a different order on each device; where devices are threads of one CPU, their
    collectives then wait for each other until XLA aborts the process."""
    metrics: dict[str, Any] = {}
    for batch in batches:
        if metrics:
            yield jax.block_until_ready(metrics)
        metrics = eval_step(params, batch)
    if metrics:
        yield jax.block_until_ready(metrics)


def total(eval_step: Callable[[Any, Batch], dict[str, Pair]], params: Any, batches: Iterable[Batch]) -> dict[str, Pair]:
    """Metrics summed over all batches; empty if there are none."""
    added: dict[str, Pair] = {}
    for metrics in in_turn(eval_step, params, batches):
        added = losses.add(added, metrics) if added else metrics
    return added
