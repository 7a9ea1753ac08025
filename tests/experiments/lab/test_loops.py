"""Loops are counted in the program, along the longest chain of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments.lab.loops import loops


def _scan(length: int, x: Any) -> Any:
    return lax.scan(lambda carry, _: (jnp.sin(carry), None), x, None, length=length)[0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + 1, 0),
        (lambda x: _scan(7, x), 7),
        (lambda x: _scan(3, _scan(7, x)), 10),
        (lambda x: _scan(3, x) + _scan(7, x), 7),
        (lambda x: lax.scan(lambda c, _: (_scan(5, c), None), x, None, length=3)[0], 15),
        (lambda x: jax.jit(lambda y: _scan(3, y))(_scan(4, x)), 7),
        (lambda x: lax.cond(x > 0, lambda y: _scan(3, y), lambda y: _scan(8, y), x), 8),
        (lambda x: jax.checkpoint(lambda y: _scan(3, y))(x), 3),
        (lambda x: lax.fori_loop(0, 6, lambda i, y: jnp.sin(y), x), 6),
        (jax.grad(lambda x: _scan(7, x)), 14),
        (lambda x: (_scan(7, x), 1)[1], 0),
    ],
    ids=[
        "none",
        "one",
        "in a row",
        "side by side",
        "nested",
        "in a call",
        "branches",
        "remat",
        "fori",
        "grad",
        "unused",
    ],
)
def test_loops_are_the_longest_chain(function: Callable[..., Any], expected: int) -> None:
    assert loops(jax.make_jaxpr(function)(1.0).jaxpr) == expected


def test_a_loop_without_a_length_is_no_number() -> None:
    with pytest.raises(ValueError, match="without a length"):
        loops(jax.make_jaxpr(lambda x: lax.while_loop(lambda y: y < 9, lambda y: y + 1, x))(1.0).jaxpr)
