"""Matrix products of a low precision with results in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def product(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.matmul` of two arrays of one type, with results in float32. In the backward pass the cotangent is rounded to
    that type, so that its products have operands of that type as well; by JAX's own rule, they would be in float32."""
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


@product.defjvp
def _tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    # The transpose of the last conversion is the rounding.
    return (
        jnp.matmul(x, y, preferred_element_type=jnp.float32),
        (jnp.matmul(dx, y) + jnp.matmul(x, dy)).astype(jnp.float32),
    )
