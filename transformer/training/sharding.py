"""The mesh, and where arrays live on it. The only room that knows that there are devices."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer.config import MeshConfig, UserError


def make_mesh(config: MeshConfig, row_multiple: int) -> Mesh:
    """A mesh of all local devices with the axis "data"; axis types are Auto (Linen needs it, and so does jit here)."""
    devices = len(jax.devices())
    data = devices if config.data == -1 else config.data
    if not 1 <= data <= devices:
        raise UserError(
            f"mesh.data={config.data}, but there are {devices} devices: choose 1 to {devices}, or -1 for all"
        )
    if row_multiple % data:
        raise UserError(
            f"the rows of a batch are multiples of data.row_multiple={row_multiple}, which do not divide over {data} "
            f"devices: set mesh.data to a divisor, or data.row_multiple to a multiple of {data}"
        )
    return Mesh(np.asarray(jax.devices()[:data]), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_rows(mesh: Mesh) -> NamedSharding:
    """Every array of a batch begins with the row axis B."""
    return NamedSharding(mesh, PartitionSpec("data"))
