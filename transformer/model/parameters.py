"""Parameters with named axes, for sharding, weight decay and initialisation. When a module is initialised, the names go
into the collection "axes" beside "params"; `logical_axes` of `transformer.model.families` collects them. The first axis
of parameters stacked by scanned layers is "layers"."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Names = tuple[str | None, ...]
SUFFIX = "_axes"  # of names in the collection: Flax's bridge to NNX needs unique names


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Axes:
    """The axis names of one parameter. A pytree without leaves, so that it passes through `jax.jit`."""

    names: Names


def parameter(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], axes: Names) -> Array:
    """`module.param` in float32, with a name for each axis (None: no name, never sharded). ValueError: the number of
    names is not that of the axes."""
    if len(axes) != len(shape):
        raise ValueError(f"parameter {name!r} has shape {shape} and axes {axes}: give a name for each axis")
    _say(module, name, Axes(axes))
    return module.param(name, init, shape, jnp.float32)


def rows(table: Float[Array, "V D"], ids: Int[Array, "*B L"]) -> Float[Array, "*B L D"]:
    """The rows of a table; an id outside it (also below 0, which NumPy counts from the end) gives NaN."""
    return table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def name_axes_of(module: nn.Module, child: nn.Module) -> None:
    """Names the axes of the parameters of a Flax module: matrices are ("in", "out"), vectors ("out",)."""
    made = child.variables.get("params", {})
    names: dict[int, Names] = {1: ("out",), 2: ("in", "out")}
    _say(module, str(child.name), jax.tree.map(lambda x: Axes(names[x.ndim]), dict(made)))


def _say(module: nn.Module, name: str, axes: Any) -> None:
    if module.is_mutable_collection("axes"):
        module.put_variable("axes", name + SUFFIX, axes)


def paths(axes: Any) -> dict[str, Names]:
    """Path of a parameter -> its axis names, from the collection "axes"."""
    flat = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda x: isinstance(x, Axes))[0]
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): found.names for path, found in flat}
    return {re.sub(rf"{SUFFIX}(/|$)", r"\1", path): axes for path, axes in names.items()}
