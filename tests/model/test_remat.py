"""What the backward pass keeps of attention: with its results kept, no kernel runs twice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from tests.model.test_kinds import counted
from transformer.model.remat import KERNELS, REMAT, kept

# How often the forward pass of the attention below stands in the program of a gradient.
TIMES = {"full": 2, "attention": 1, "dots": 1}


def _sines(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An output, and a number of each row that the backward pass needs besides."""
    return jnp.sin(x), jnp.sort(x, axis=-1)[:, :1]


def _in_a_kernel(x: jax.Array) -> Any:
    def kernel(x_ref: Any, out_ref: Any, least_ref: Any) -> None:
        out_ref[...], least_ref[...] = _sines(x_ref[...])

    shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((x.shape[0], 1), x.dtype))
    return pl.pallas_call(kernel, out_shape=shapes, interpret=True)(x)


FORWARDS = {
    "pallas_call": _in_a_kernel,
    "sort": lambda x: jax.tree.map(kept, _sines(x)),
}


def _gradient(forward: Any, remat: str | None) -> Any:
    """Of a layer: a product, attention with a backward pass of its own, a product."""

    @jax.custom_vjp
    def attention(x: jax.Array) -> jax.Array:
        return sum(forward(x))

    def first(x: jax.Array) -> Any:
        out, least = forward(x)
        return out + least, (x, out, least)

    def backward(held: Any, gradient: jax.Array) -> Any:
        x, out, least = held
        return ((gradient + 0 * (out + least)) * jnp.cos(x),)

    attention.defvjp(first, backward)

    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.tanh(attention(x @ w) @ w)

    run = layer if remat is None else jax.checkpoint(layer, policy=REMAT[remat])  # type: ignore[attr-defined]
    return jax.grad(lambda x, w: run(x, w).sum(), (0, 1))


@pytest.mark.parametrize("primitive", FORWARDS)
@pytest.mark.parametrize("remat", REMAT)
def test_what_is_kept_is_not_computed_again(remat: str, primitive: str) -> None:
    random = np.random.default_rng(0)
    x, w = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((3, 5), (5, 5)))
    gradient = _gradient(FORWARDS[primitive], remat)
    program = counted(jax.make_jaxpr(gradient)(x, w).jaxpr)
    assert program[primitive] == TIMES[remat]
    # Products: two forward, and two for each gradient; "dots" keeps the first two, the others compute again those that
    # the backward pass needs: the first for cos(x), and the second for tanh's derivative.
    assert program["dot_general"] == 6 + {"full": 2, "attention": 2, "dots": 0}[remat]
    alone = _gradient(FORWARDS[primitive], None)(x, w)
    for left, right in zip(gradient(x, w), alone, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_the_kernel_of_cudnn_has_the_name_that_is_kept() -> None:
    """It is compiled for an accelerator only, so that here its primitive is looked up."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    named = {getattr(value, "name", None) for value in vars(cudnn).values()}
    assert set(KERNELS) - {"pallas_call"} <= named, "this version of JAX names it otherwise"
