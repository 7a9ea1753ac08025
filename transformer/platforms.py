"""Tuned numbers by platform: PLATFORMS. No other file holds one. They affect speed and memory, never the result (up to
rounding)."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import AxisType

ROW_AXES = ("data", "fsdp")  # axes of the mesh over which the rows of a batch are split
LENGTH_AXIS = "sequence"  # the axis over which the positions of each row are split
HEAD_AXIS = "tensor"  # and the axis over which the heads are split


@dataclasses.dataclass(frozen=True)
class Platform:
    """The tuned numbers of one platform."""

    # Queries of a strip (`transformer.model.attention.strips`), the first choice first; none: no strips. On two cores,
    # forward and backward, 48 heads of 256 positions took 11 ms by strips of 64, 13 by 128 and 20 by 32, and 33 with
    # all scores at once.
    strips: tuple[int, ...] = ()
    # Most pairs of a strip and a block of keys: each is compiled by itself.
    strip_pairs: int = 64
    # Fewest and most queries of a strip of a window (`transformer.model.attention.windows`); none: no such strips. On
    # two cores, forward and backward, 64 rows and heads of 1,024 positions with 32 keys before each took 84 ms by
    # strips of 32, 130 by 64 and 223 by 128; with 128 keys, 194, 152 and 216.
    window_strip: tuple[int, int] | None = None
    # Most numbers of the queries that a turn of the loop over a window's chunks takes: 16 MiB. One turn has no loop,
    # and took 44 ms where eight took 55 (1,024 positions as above); eight need 71 MiB instead of 115.
    window_turn: int = 1 << 22
    # Scores of one head (L x S) from which attention is tiled. On two cores, forward and backward: 21 ms against 18 for
    # all scores at once at length 512, 50 against 68 at 1,024 (experiments/attention_cost.py).
    tiles_from: int = 1 << 19
    # Largest side of a tile. Two cores reach full speed in products of 512 x 512 x K (200 GFLOP/s; one core does
    # 256 x 256 x K at 100).
    tile: int = 512
    # Most scores of a tile, over all heads and rows: 64 MiB. Larger tiles are halved.
    tile_scores: int = 1 << 24
    # Fewest queries of a window's tile. A smaller tile saves less than a step of the loop over tiles costs.
    window_tile: int = 128
    # Bytes of float32 scores of the tiles that are computed side by side; 0: one tile at a time, which stays in a
    # processor's cache.
    side_by_side: int = 0
    # Bytes of a mask [B, L, S] that a kernel without segments gets; more go to tiles.
    mask_bytes: int = 0
    # Largest side of a block of a kernel, or of a window's tiles side by side.
    kernel_block: int = 512
    # Tokens per slice of the loss. The logits of 512 tokens and 6,000 pieces stay in the cache of two
    # cores: loss and gradient of 4,096 tokens took 74 ms, against 361 ms with all their logits at once.
    loss_tokens: int = 512
    # Logits of a slice of the loss, where these are more tokens: a small vocabulary needs no slices.
    loss_logits: int = 512 * 6000
    # Bytes of the logits of a slice of the loss, in float32, on one device; 0: slices have `loss_tokens`. Each slice
    # reads the table and adds to its gradient, so an accelerator has few: four for 32 rows of 1,024 and 50,257 tokens.
    loss_bytes: int = 0
    # Whether the sums of a softmax over the vocabulary are one reduction with several results, which reads the logits
    # once. XLA's CPU compiler does not vectorize it.
    one_pass: bool = False
    # Whether the backward pass computes an activation again from its input, instead of reading what the forward pass
    # wrote: GELU's tanh is as large as its input.
    activations_again: bool = False


# Those of accelerators are reckoned in bytes, not measured. Below `tiles_from` all scores are kept for the backward
# pass: 512 x 512 in float32 are 1 MiB a head. Tiles side by side take about three times their scores, forward and
# backward: 6 of an H100's 80 GB, 1.5 of a TPU v5e's 16. A mask of 1 GiB is 32 rows of 4,096 tokens. A block of 512 x
# 512 scores in float32 is 1 of 128 MiB of a v5e's on-chip memory.
PLATFORMS: dict[str, Platform] = {
    "cpu": Platform(strips=(64, 128), window_strip=(32, 128)),
    "gpu": Platform(
        tiles_from=1 << 18,
        side_by_side=2 << 30,
        mask_bytes=1 << 30,
        loss_bytes=2 << 30,
        one_pass=True,
        activations_again=True,
    ),
    "tpu": Platform(tiles_from=1 << 18, side_by_side=1 << 29, loss_bytes=1 << 30, activations_again=True),
}

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Within, programs are traced for this platform ("cpu", "gpu", "tpu"), whatever this process runs on."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def target() -> str:
    """The target platform: that of `compiling_for`, or else JAX's default."""
    return _target.get() or jax.default_backend()


def tuned() -> Platform:
    """The numbers of the target platform."""
    return PLATFORMS.get(target(), PLATFORMS["cpu"])


def row_shards() -> int:
    """The number of shards of a batch's rows in the program being traced; 1 inside `jax.shard_map`, where arrays are
    those of one device."""
    return _shards(ROW_AXES)


def length_shards() -> int:
    """The same of the positions of each row."""
    return _shards((LENGTH_AXIS,))


def _shards(axes: tuple[str, ...]) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)) if mesh.axis_names else {}
    return math.prod(mesh.shape[axis] for axis in axes if types.get(axis) == AxisType.Auto)


def device_rows(rows: int) -> int:
    """How many of a batch's rows one device computes."""
    return -(-rows // row_shards())
