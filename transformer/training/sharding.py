"""The mesh, and the sharding of arrays over it: SHARDINGS.

A mesh has four axes. "data" and "fsdp" both split the rows of a batch; "fsdp" also splits the parameters and the
optimizer's state, which are gathered matrix by matrix where they are used (Rajbhandari et al. 2020, "ZeRO", stage 3);
"sequence" splits the positions of each row, whose attention goes round a ring of devices or to neighbours
(`transformer.model.attention.sequence`); "tensor" splits the heads, the inner features of the feed-forward and the
vocabulary (Shoeybi et al. 2019, "Megatron-LM"). SHARDINGS says which parameter axes each mesh axis splits; its key
names the mesh axes in use.

Where groups of devices (TPU slices, machines) have a slow network between them, "data" is split over the groups first
(`mesh.dcn`): of a step, only the sum of the gradient over "data" crosses that network.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from transformer.config import Config
from transformer.errors import UserError
from transformer.platforms import LENGTH_AXIS, ROW_AXES, compiling_for

AXES = ("data", "fsdp", LENGTH_AXIS, "tensor")

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

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return math.prod(self.mesh.shape[axis] for axis in ROW_AXES)

    @property
    def part(self) -> tuple[list[int], int]:
        """The shards of a batch's rows that this process's devices hold, in order, and how many there are in all. Where
        "tensor" goes over processes, several of them hold the same rows."""
        shards = self.row_shards
        held: Mapping[Any, Any] = self.rows.devices_indices_map((shards,))
        here = {rows.start or 0 for device, (rows,) in held.items() if device.process_index == jax.process_index()}
        return sorted(here), shards

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The global batch, from each process's `part` of its rows."""
        return {key: jax.make_array_from_process_local_data(self.rows, value) for key, value in batch.items()}

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Context for tracing a step: activation axis names, as in the model's `nn.with_logical_constraint`, map to
        this mesh."""
        tensor = "tensor" if "tensor" in SHARDINGS[self.strategy] else None
        length = LENGTH_AXIS if self.mesh.shape[LENGTH_AXIS] > 1 else None
        rules = (
            ("rows", ROW_AXES),
            ("length", length),
            ("shares", ROW_AXES if length is None else (*ROW_AXES, length)),
            ("vocabulary", None if "vocabulary" in self.whole else tensor),
        )
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
            said.append(
                f"every device holds whole, because no axis divides over mesh.{axis}={size}: {', '.join(found)}"
            )
    return said


def make_layout(
    config: Config, devices: int | None = None, axes: Mapping[str, tuple[str | None, ...]] | None = None
) -> Layout:
    """The layout that `config.mesh` asks for, over the devices present, or an abstract one over `devices`. `axes` are
    those of `Layout`. UserError: the devices, their groups, the heads or the feed-forward width do not divide."""
    shape = _sizes(config, devices or len(jax.devices()))
    model, tensor = config.model, shape["tensor"]
    if shape[LENGTH_AXIS] > 1 and model.family.startswith("recurrent"):
        raise UserError(
            f"mesh.sequence={shape[LENGTH_AXIS]} splits the positions of a row, and model.family={model.family!r} "
            "reads them one after another: set mesh.sequence=1"
        )
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
    made = arranged(jax.devices()[: math.prod(sizes)], sizes, config.mesh.dcn)
    return Layout(Mesh(made, AXES, axis_types=types), frozenset(whole), axes or {})


def arranged(devices: Sequence[Any], sizes: tuple[int, ...], groups: int = 1) -> np.ndarray:
    """The devices in the order of a mesh of these sizes, whose first axis goes over `groups` of them one after another.
    A group is a slice of TPUs; elsewhere it is one or more slices, or processes where all are one slice. Within a group
    the order is JAX's, which knows the links of TPUs. UserError: the devices are not of so many groups of one size."""
    of_slice = [getattr(device, "slice_index", 0) for device in devices]
    slices, tpu = len(set(of_slice)), devices[0].platform == "tpu"
    if groups == 1 and not (tpu and slices > 1):
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    units: dict[int, list[Any]] = {}
    for unit, device in zip(of_slice, devices, strict=True):
        units.setdefault(unit if tpu or slices > 1 else device.process_index, []).append(device)
    each, (size, *_) = len(units) // groups, map(len, units.values())
    if len(units) != groups * (1 if tpu else each) or any(len(unit) != size for unit in units.values()):
        kind = "slice" if tpu or slices > 1 else "process"
        found = ", ".join(str(len(unit)) for unit in units.values())
        raise UserError(
            f"mesh.dcn={groups}, and the devices of each {kind} are {found}: set it to "
            f"{'how many slices there are' if tpu else '1, or to what divides them into groups of as many'}"
        )
    ordered = [device for unit in sorted(units) for device in units[unit]]
    parts = [ordered[at : at + each * size] for at in range(0, len(ordered), each * size)]
    shape = (sizes[0] // groups, *sizes[1:])
    return np.concatenate([mesh_utils.create_device_mesh(shape, p, allow_split_physical_axes=True) for p in parts])


def check_rows(layout: Layout, shapes: Iterable[tuple[int, ...]], accumulate: int = 1) -> None:
    """UserError: batches of these (rows, length of each side) do not divide over the devices and micro-batches."""
    shards = layout.row_shards
    for rows, *lengths in shapes:
        if rows % (shards * accumulate):
            each = f" and {accumulate} micro-batches" if accumulate > 1 else ""
            raise UserError(
                f"a batch of {rows} rows of length {max(lengths)} does not divide over data x fsdp = {shards} "
                f"devices{each}: "
                f"make data.row_multiple a multiple of {shards * accumulate}, or change data.batch_tokens or the mesh"
            )


def check_lengths(layout: Layout, shapes: Iterable[tuple[int, ...]]) -> None:
    """UserError: batches of these (rows, positions of each side) do not divide over the axis "sequence"."""
    devices = layout.mesh.shape[LENGTH_AXIS]
    for rows, *lengths in shapes:
        for length in lengths:
            if length % devices:
                raise UserError(
                    f"a batch of {rows} rows of {length} positions does not divide over mesh.sequence={devices}: make "
                    "them a multiple of it, by data.buckets and data.max_len (recordings have one for four frames) or "
                    "by the patches, or change the mesh"
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
    if jax.process_count() > 1 and size != devices:
        raise UserError(f"{named} takes {size} of the {devices} devices of all processes: take all of them")
    if shape["data"] % config.mesh.dcn:
        raise UserError(
            f"mesh.data={shape['data']} does not divide over mesh.dcn={config.mesh.dcn}: change one of them"
        )
    return shape
