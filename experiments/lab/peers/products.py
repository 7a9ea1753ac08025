"""The products of a training step with its weights, and nothing else: what no implementation can leave out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.peers import Model


def shapes(model: Model) -> list[tuple[int, int]]:
    """(features in, features out) of each matrix that the tokens go through, the output layer last."""
    square, inner = (model.width, model.width), (model.width, model.inner)
    layer = [square] * 4 + [inner, inner[::-1]]
    crossed = [square] * 4 if model.encoder else []
    return (layer * (1 + model.encoder) + crossed) * model.layers + [(model.width, model.vocabulary)]


def run(model: Model) -> tuple[Callable[[], Any], int]:
    """A run that is timed, and the number of weights: forward, with respect to the input and to the weights. Each
    matrix has an input and a gradient of its own, so that no product is the same as another, nor waits for one."""
    rng, tokens = np.random.default_rng(0), model.rows * model.length
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, dtype=np.float32))  # noqa: E731
    arrays = [(draw(tokens, a), draw(a, b), draw(tokens, b)) for a, b in shapes(model)]

    def all_of(arrays: Any) -> Any:
        return [(x @ weight, change @ weight.T, x.T @ change) for x, weight, change in arrays]

    compiled = jax.jit(all_of).lower(arrays).compile()
    return lambda: jax.block_until_ready(compiled(arrays)), sum(weight.size for _, weight, _ in arrays)
