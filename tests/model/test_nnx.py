"""A Linen module of ours inside Flax NNX, by Flax's own bridge: the same numbers, forward and backward."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from transformer.config import ModelConfig
from transformer.model.families import build


@pytest.fixture
def config() -> ModelConfig:
    """Attention, norms and feed-forward in two layers, whose input is a plain array."""
    return ModelConfig(
        family="forecaster", inputs="series", positions="learned", max_positions=8, patch_size=3, patch_stride=3,
        num_classes=5, num_layers=2, d_model=12, d_ff=20, num_heads=3, attention_bias=True,
    )  # fmt: skip


def _normal(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _dict(tree: Any) -> Any:
    """Values by name, as Linen has them."""
    return nnx.to_pure_dict(tree)


def _equal(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), left, right)


def test_outputs_and_gradients_are_those_of_linen(config: ModelConfig) -> None:
    module, inputs, target = build(config), _normal(0, 2, 12, 3), _normal(1, 2, 5, 3)
    model = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(inputs)
    params = _dict(nnx.state(model, nnx.Param))
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)  # the same names, nothing left out

    expected = module.apply({"params": params}, inputs)
    assert float(jnp.std(expected)) > 0.01
    _equal(model(inputs), expected)

    def loss(model: Any) -> Any:
        return jnp.mean((model(inputs) - target) ** 2)

    found = nnx.grad(loss)(model)
    wanted = jax.grad(lambda params: loss(lambda x: module.apply({"params": params}, x)))(params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted)) > 0.01
    _equal(_dict(found), wanted)

    # And a step of training, as someone who writes NNX would take it.
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(model, found)
    _equal(_dict(nnx.state(model, nnx.Param)), jax.tree.map(lambda x, g: x - 0.1 * g, params, wanted))


def test_trained_parameters_are_carried_over(config: ModelConfig) -> None:
    """Those of a run, made by Linen's `init`, in place of the ones that NNX drew."""
    module, inputs = build(config), _normal(0, 2, 12, 3)
    params = module.init(jax.random.key(7), inputs)["params"]
    model = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(inputs)
    state = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(model, state)
    _equal(model(inputs), module.apply({"params": params}, inputs))
