"""Position encodings that are added to the embeddings: POSITIONS, name -> module.

Every entry is called with the positions of the tokens, not with the shape of an array, so that packed rows and
cached decoding need no special case.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig


def sinusoid(positions: Int[Array, "*L"], d_model: int) -> Float[Array, "*L D"]:
    """The paper's encoding, interleaved (Vaswani et al. 2017, section 3.5):

    PE(p, 2i) = sin(p / 10000^(2i/D)),  PE(p, 2i+1) = cos(p / 10000^(2i/D))

    An odd D ends with a sine. Well-known code has two other formulas (sines and cosines concatenated, D/2 - 1 in the
    exponent); they are other tables.
    """
    pairs = (d_model + 1) // 2
    rate = 10000.0 ** (-2 * jnp.arange(pairs) / d_model)
    angle = positions[..., None].astype(jnp.float32) * rate
    table = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return table.reshape(*positions.shape, 2 * pairs)[..., :d_model]


class Sinusoidal(nn.Module):
    config: ModelConfig

    def __call__(self, x: Float[Array, "B L D"], positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        return x + sinusoid(positions, x.shape[-1]).astype(x.dtype)


class Learned(nn.Module):
    """One trained vector a position (paper, Table 3 E). There is none past `max_positions`: positions whose values
    are known raise a ValueError, and inside jit, where they are not, they give NaN, never a neighbour's vector. The
    verbs refuse longer input before they compile anything."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        if not isinstance(positions, jax.core.Tracer) and positions.size:
            check_length(self.config, int(positions.max()) + 1)
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        table = self.param("table", init, (self.config.max_positions, x.shape[-1]), jnp.float32)
        return x + jnp.take(table, positions, axis=0, mode="fill", fill_value=jnp.nan).astype(x.dtype)


class NoPositions(nn.Module):
    config: ModelConfig

    def __call__(self, x: Float[Array, "B L D"], positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        return x


POSITIONS: dict[str, type[nn.Module]] = {"sinusoidal": Sinusoidal, "learned": Learned, "none": NoPositions}


def longest(config: ModelConfig) -> int | None:
    """The longest sequence the encoding has entries for; None = any length."""
    return config.max_positions if config.positions == "learned" else None


def check_length(config: ModelConfig, length: int) -> None:
    """Raises before anything is compiled when a sequence is longer than the model's position table."""
    limit = longest(config)
    if limit is not None and length > limit:
        raise ValueError(
            f"a sequence of {length} tokens needs position {length - 1}, but the learned position table ends at "
            f"{limit - 1}: shorten the input, or train with model.max_positions={length} or more"
        )
