"""Matrix products of a low precision with results in float32."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wide(x: Array) -> Any:
    """The type of scores, softmax and sums for arrays of the type of x: float32, or float64 for float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


@jax.custom_jvp
def product(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.matmul` of two arrays of one type, with `wide` results. In the backward pass the cotangent is rounded to
    that type, so that its products have operands of that type too; by JAX's own rule, they would be in float32."""
    return jnp.matmul(x, y, preferred_element_type=wide(x))


@product.defjvp
def _tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    # The transpose of the last conversion is the rounding.
    return jnp.matmul(x, y, preferred_element_type=wide(x)), (jnp.matmul(dx, y) + jnp.matmul(x, dy)).astype(wide(x))
