"""A learned position table for another number of positions, for `transformer.beginning`."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer.config import ModelConfig


class Resized(NamedTuple):
    """What becomes of a position table."""

    there: str  # the positions that it has
    here: str  # those that it gets
    invents: bool  # some of them were not trained
    way: str  # the key that leaves it as it is
    make: Callable[[Array], Array]

    def __str__(self) -> str:
        return f"{'interpolated' if self.invents else 'cut'} from {self.there} to {self.here}"


def of_sequences(there: ModelConfig, here: ModelConfig) -> Resized | None:
    """A table of a sequence: cut, or interpolated between its rows. None where the lengths are equal."""
    old, new = there.max_positions, here.max_positions
    if old == new:
        return None
    make = (lambda table: resized(table, new)) if new > old else (lambda table: table[:new])
    return Resized(f"{old} positions", f"{new}", new > old, f"model.max_positions={old}", make)


def of_images(there: ModelConfig, here: ModelConfig) -> Resized | None:
    """A table of the patches of an image, row by row, after the vector that is pooled, if any: bilinear over the grid
    of patches; the row of that vector stays as it is. None where nothing changes."""
    old, new = ([side // model.patch_size for side in model.image_size] for model in (there, here))
    before, kept = (int(model.pooling != "mean") for model in (there, here))
    if (old, before, there.max_positions) == (new, kept, here.max_positions):
        return None

    def make(table: Float[Array, "rows D"]) -> Float[Array, "places D"]:
        grid = table[before : before + old[0] * old[1]].reshape(*old, -1)
        grid = resized(resized(grid, new[0], 0), new[1], 1).reshape(new[0] * new[1], -1)
        return filled_up(jnp.concatenate([table[:kept], grid]), here.max_positions)

    sides = [" x ".join(map(str, grid)) for grid in (old, new)]
    return Resized(f"{sides[0]} patches", sides[1], old != new, f"model.image_size={there.image_size}", make)


def resized(table: Float[Array, "*rows D"], size: int, axis: int = 0) -> Float[Array, "*places D"]:
    """Linear interpolation along an axis between its first and its last entry, which stay as they are (as in ViT's own
    code, `scipy.ndimage.zoom` of order 1)."""
    last = table.shape[axis] - 1
    at = np.linspace(0, last, size)
    low = np.floor(at).astype(int)
    weight = jnp.expand_dims((at - low).astype(np.float32), [i for i in range(table.ndim) if i != axis])
    first, second = (jnp.take(table, index, axis) for index in (low, np.minimum(low + 1, last)))
    return first + (second - first) * weight


def filled_up(table: Float[Array, "*table"], rows: int) -> Float[Array, "*longer"]:
    """The table with so many rows, those at its end 0."""
    return jnp.pad(table, [(0, rows - table.shape[0])] + [(0, 0)] * (table.ndim - 1))
