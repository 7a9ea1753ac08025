"""The mesh, and the sharding of arrays over it: SHARDINGS.

A mesh has three axes. "data" and "fsdp" both split the rows of a batch; "fsdp" also splits the parameters and the
optimizer's state, which are gathered matrix by matrix where they are used (Rajbhandari et al. 2020, "ZeRO", stage 3);
"tensor" splits the heads, the inner features of the feed-forward and the vocabulary (Shoeybi et al. 2019,
"Megatron-LM"). SHARDINGS says which parameter axes each mesh axis splits; its key names the mesh axes in use.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from transformer.config import Config
from transformer.errors import UserError
from transformer.platforms import ROW_AXES, compiling_for

AXES = ("data", "fsdp", "tensor")

# Mesh axis -> the parameter axes it may split: the first in this order that is there and divides.
_FSDP = ("model", "width", "in", "inner", "heads", "key_heads", "out", "vocabulary")
_TENSOR = ("heads", "key_heads", "inner", "vocabulary")
SHARDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {},
    "fsdp": {"fsdp": _FSDP},
    "tensor": {"tensor": _TENSOR},
    "fsdp_tensor": {"tensor": _TENSOR, "fsdp": _FSDP},
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and how it splits arrays. `whole` names parameter axes that cannot be split over "tensor"; `axes` are
    each parameter's axis names (`Task.axes`) by its path, needed to place a state."""

    mesh: Mesh | AbstractMesh
    whole: frozenset[str] = frozenset()
    axes: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)

    def names(self, path: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        """The axis names of a parameter, or of the optimizer's array for it, by its path in a state. Other values, such
        as a step count, are scalars and have none. ValueError: the path has another number of axes."""
        if not shape:
            return ()
        names = self.axes[parameter_of(path)]
        if len(names) != len(shape):
            raise ValueError(f"{path} has shape {shape} and axes {names}: a state is not of this model")
        return names

    @property
    def strategy(self) -> str:
        return "_".join(axis for axis in ("fsdp", "tensor") if self.mesh.shape[axis] > 1) or "data"

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How an array is split. An axis that does not divide stays whole, so a vocabulary of odd size is not split
        over "tensor": every device then computes all logits (`model.vocab_multiple` rounds it up)."""
        names = self.names(path, shape)
        split: list[str | None] = [None] * len(shape)
        for axis, wanted in SHARDINGS[self.strategy].items():
            size = self.mesh.shape[axis]
            if size == 1 or (axis == "fsdp" and len(set(names) - {"layers"}) < 2):
                continue  # gathering a vector takes longer than its bytes are worth
            for name in wanted:
                at = names.index(name) if name in names else -1
                held = axis == "tensor" and name in self.whole
                if at >= 0 and split[at] is None and not held and shape[at] % size == 0:
                    split[at] = axis
                    break
        return PartitionSpec(*split)

    def shardings(self, tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: NamedSharding(self.mesh, self.spec(path_of(path), x.shape)), tree
        )

    def abstract(self, shapes: Any) -> Any:
        """The shapes, with their arrays' shardings."""
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, self.shardings(shapes)
        )

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Arrays of a batch are split along their first axis, the rows."""
        return NamedSharding(self.mesh, PartitionSpec(ROW_AXES))

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The global batch, from the rows of each process."""
        return {key: jax.make_array_from_process_local_data(self.rows, value) for key, value in batch.items()}

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Context for tracing a step: activation axis names, as in the model's `nn.with_logical_constraint`, map to
        this mesh."""
        tensor = "tensor" if "tensor" in SHARDINGS[self.strategy] else None
        rules = (("rows", ROW_AXES), ("vocabulary", None if "vocabulary" in self.whole else tensor))
        devices = self.mesh.devices if isinstance(self.mesh, Mesh) else np.array([])
        platform = devices.flat[0].platform if devices.size else jax.default_backend()
        mesh = jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
        with compiling_for(platform), mesh, nn.logical_axis_rules(rules):
            yield


def path_of(keys: tuple[Any, ...]) -> str:
    """The names on the path to an array of a pytree, joined by slashes."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def parameter_of(path: str) -> str:
    """The parameter of a path in a state: the part after the last "params/"."""
    return path.rpartition("params/")[2]


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of each array."""
    return {path_of(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def kept_whole(layout: Layout, parameters: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A sentence for each axis of the mesh that splits parameters, on the matrices, path -> shape, that it leaves whole
    because none of their axes divides."""
    said = []
    for axis, wanted in SHARDINGS[layout.strategy].items():
        size, found = layout.mesh.shape[axis], list[str]()
        for path, shape in parameters.items():
            names = layout.names(path, shape)
            matrix = len(set(names) - {"layers"}) > 1
            if size > 1 and matrix and set(names) & set(wanted) and axis not in layout.spec(path, shape):
                found.append(f"{path} {' x '.join(map(str, shape))}")
        if found:
            said.append(f"every device holds whole, because no axis divides over mesh.{axis}={size}: {', '.join(found)}")
    return said


def make_layout(
    config: Config, devices: int | None = None, axes: Mapping[str, tuple[str | None, ...]] | None = None
) -> Layout:
    """The layout that `config.mesh` asks for, over the devices present, or an abstract one over `devices`. `axes` are
    those of `Layout`. UserError: the devices, the heads or the feed-forward width do not divide."""
    shape = _sizes(config, devices or len(jax.devices()))
    model, tensor = config.model, shape["tensor"]
    for key in ("num_heads", "d_ff"):
        if getattr(model, key) % tensor:
            raise UserError(
                f"model.{key}={getattr(model, key)} does not divide over mesh.tensor={tensor}: change one of them"
            )
    whole = set() if (model.num_kv_heads or model.num_heads) % tensor == 0 else {"key_heads"}
    vocabulary = model.vocab_size or config.data.vocab_size
    if -(-vocabulary // model.vocab_multiple) * model.vocab_multiple % tensor:
        whole.add("vocabulary")
    sizes, types = tuple(shape.values()), (AxisType.Auto,) * len(AXES)
    if devices is not None:
        return Layout(AbstractMesh(sizes, AXES, axis_types=types), frozenset(whole), axes or {})
    made = jax.make_mesh(sizes, AXES, axis_types=types, devices=jax.devices()[: math.prod(sizes)])
    return Layout(made, frozenset(whole), axes or {})


def check_rows(layout: Layout, shapes: Iterable[tuple[int, ...]], accumulate: int = 1) -> None:
    """UserError: batches of these (rows, length of each side) do not divide over the devices and micro-batches."""
    shards = math.prod(layout.mesh.shape[axis] for axis in ROW_AXES)
    for rows, *lengths in shapes:
        if rows % (shards * accumulate):
            each = f" and {accumulate} micro-batches" if accumulate > 1 else ""
            raise UserError(
                f"a batch of {rows} rows of length {max(lengths)} does not divide over data x fsdp = {shards} "
                f"devices{each}: "
                f"make data.row_multiple a multiple of {shards * accumulate}, or change data.batch_tokens or the mesh"
            )


def _sizes(config: Config, devices: int) -> dict[str, int]:
    """The sizes of the mesh axes, with -1 replaced. UserError: there are not that many devices."""
    shape = {axis: getattr(config.mesh, axis) for axis in AXES}
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in shape.items())
    rest = [axis for axis, size in shape.items() if size == -1]
    known = math.prod(size for size in shape.values() if size != -1)
    if len(rest) > 1 or any(size < 1 and size != -1 for size in shape.values()):
        raise UserError(f"{named}: each is 1 or more, and one may be -1, for the rest of the devices")
    if rest and devices % known == 0:
        shape[rest[0]] = devices // known
    size = math.prod(shape.values())
    if size < 1 or size > devices:
        raise UserError(f"{named}, but there are {devices} devices: choose sizes that they can be divided into")
    if jax.process_count() > 1:
        if size != devices:
            raise UserError(f"{named} takes {size} of the {devices} devices of all processes: take all of them")
        if jax.local_device_count() % shape["tensor"]:
            raise UserError(
                f"mesh.tensor={shape['tensor']} does not divide the {jax.local_device_count()} devices of a process: "
                "choose a divisor"
            )
    return shape
