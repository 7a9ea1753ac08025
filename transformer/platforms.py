"""Numbers that depend on the machine, in one table by platform: PLATFORMS. No other file holds a tuned number.

They change how fast a result is computed and how much memory that takes, never the result (up to rounding).
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import AxisType

ROW_AXES = ("data", "fsdp")  # axes of the mesh over which the rows of a batch are split


@dataclasses.dataclass(frozen=True)
class Platform:
    """What pays on one kind of machine."""

    # Scores of one head (L x S) from which attention goes tile by tile. On two cores, forward and backward: 21 ms
    # against 18 for all scores at once at length 512, 50 against 68 at 1,024 (experiments/attention_cost.py).
    tiles_from: int = 1 << 19
    # Side of a tile at most. Two cores reach their full speed in products of 512 x 512 x K (200 GFLOP/s; one of them
    # does 256 x 256 x K at 100).
    tile: int = 512
    # Scores of a tile, of all heads and rows together: 64 MiB. Tiles are halved where they would hold more.
    tile_scores: int = 1 << 24
    # Queries of a window's tile at least. A smaller tile saves less than a step of the loop over tiles costs.
    window_tile: int = 128
    # Tokens whose logits exist at once in the loss. The logits of 512 tokens and 6,000 pieces stay in the cache of two
    # cores: loss and gradient of 4,096 tokens took 74 ms, against 361 ms with all their logits at once.
    loss_tokens: int = 512


# Accelerators have the numbers of a CPU until they are measured on one.
PLATFORMS: dict[str, Platform] = {"cpu": Platform(), "gpu": Platform(), "tpu": Platform()}

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """What is traced within is compiled for this platform ("cpu", "gpu", "tpu"), whatever this process runs on."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def target() -> str:
    """The platform that is compiled for: that of `compiling_for`, or else JAX's default."""
    return _target.get() or jax.default_backend()


def tuned() -> Platform:
    """The numbers of the platform that is compiled for."""
    return PLATFORMS.get(target(), PLATFORMS["cpu"])


def row_shards() -> int:
    """Over how many shares the rows of a batch are split, in the program that is being traced.

    Inside `jax.shard_map` it is 1: there, arrays are those of one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)) if mesh.axis_names else {}
    return math.prod(mesh.shape[axis] for axis in ROW_AXES if types.get(axis) == AxisType.Auto)


def device_rows(rows: int) -> int:
    """How many of a batch's rows one device computes."""
    return -(-rows // row_shards())
