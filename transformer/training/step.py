"""The train state, and the compiled steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from transformer.training import losses, sharding
from transformer.training.losses import Pair

Batch = Mapping[str, Any]
# loss(params, batch, seed, step) -> metrics with a "loss"; seed None = deterministic
Loss = Callable[..., dict[str, Pair]]


class State(NamedTuple):
    """All that training changes. Data order and dropout follow from the step and the seed."""

    step: Int[Array, ""]
    params: Any
    optimizer: Any


def make_init(
    init: Callable[[Array], Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[..., State]:
    """`create(seed) -> State`, compiled so that the state is born where it will live."""

    def create(seed: Array) -> State:
        params = init(jax.random.key(seed, impl="threefry2x32"))
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.jit(create, out_shardings=sharding.replicated(mesh))


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[State, Batch, Array], tuple[State, dict[str, Pair]]]:
    """One optimizer step. The loss is a global sum over a global weight, so it does not depend on the devices."""

    def train_step(state: State, batch: Batch, seed: Array) -> tuple[State, dict[str, Pair]]:
        def mean_loss(params: Any) -> tuple[Array, dict[str, Pair]]:
            metrics = loss(params, batch, seed, state.step)
            total, weight = metrics["loss"]
            return total / jnp.maximum(weight, 1), metrics

        grads, metrics = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        metrics["gradient_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        return State(state.step + 1, optax.apply_updates(state.params, updates), optimizer_state), metrics

    everywhere, rows = sharding.replicated(mesh), sharding.over_rows(mesh)
    return jax.jit(
        train_step,
        in_shardings=(everywhere, rows, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def make_eval_step(loss: Loss, mesh: Mesh) -> Callable[[Any, Batch], dict[str, Pair]]:
    """Metrics of a batch, deterministic."""
    everywhere, rows = sharding.replicated(mesh), sharding.over_rows(mesh)
    return jax.jit(
        lambda params, batch: loss(params, batch, None, None), in_shardings=(everywhere, rows), out_shardings=everywhere
    )


def total(eval_step: Callable[[Any, Batch], dict[str, Pair]], params: Any, batches: Iterable[Batch]) -> dict[str, Pair]:
    """Metrics of all batches together; nothing where there is none."""
    added: dict[str, Pair] = {}
    for batch in batches:
        metrics = eval_step(params, batch)
        added = losses.add(added, metrics) if added else metrics
    return added
