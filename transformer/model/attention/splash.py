"""JAX's Pallas kernel for TPUs, "splash attention": blocks of scores that a band hides are not computed, and masks of
segments are made inside the kernel, so that memory is O(L + S)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer.model import masks
from transformer.model.attention.kernels import block
from transformer.model.attention.tiles import NOBODY


@functools.lru_cache(maxsize=64)
def _kernel(length: int, keys: int, limits: masks.Band, blocks: tuple[int, int], heads: int, interpret: bool) -> Any:
    """The kernel for padded lengths, with its tables of blocks as NumPy arrays."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    class Band(splash_attention_mask.LocalMask):
        """A band whose blocks off its edges are not compared element by element: at 65,536 that took a minute."""

        def __getitem__(self, at: tuple[slice, slice]) -> np.ndarray:
            rows, columns = at
            left, right = self.window_size
            low, high = columns.start - (rows.stop - 1), columns.stop - 1 - rows.start  # of the offsets in the block
            if (left is not None and high < -left) or (right is not None and low > right):
                return np.broadcast_to(False, (rows.stop - rows.start, columns.stop - columns.start))
            return super().__getitem__(at)

    shape = (length, keys)
    mask = splash_attention_mask.FullMask(shape) if limits == (None, None) else Band(shape, limits, offset=0)
    q_block, k_block = blocks
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q_block, block_kv=k_block, block_kv_compute=k_block,
        block_q_dkv=q_block, block_kv_dkv=k_block, block_kv_dkv_compute=k_block,
        block_q_dq=q_block, block_kv_dq=k_block,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():
        made = splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, made)


def splash(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    q_segments: Int[Array, "B L"] | None,
    k_segments: Int[Array, "B S"] | None,
    *,
    limits: masks.Band,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B L H M"]:
    """`dense` by index: query i sees key j of its segment if j - i is within the limits. A query that sees no key gives
    some finite values. `interpret`: by XLA, on any platform."""
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    length, keys = q.shape[1], k.shape[1]
    blocks = (block(length, limits), block(keys, limits))
    more, more_keys = -length % blocks[0], -keys % blocks[1]
    if more_keys and q_segments is None and limits[1] != 0:  # padding keys come after all queries if causal
        q_segments, k_segments = (jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
    ids = None
    if q_segments is not None and k_segments is not None:
        ids = SegmentIds(_padded(q_segments, more, NOBODY), _padded(k_segments, more_keys, NOBODY))
    run = _kernel(length + more, keys + more_keys, limits, blocks, q.shape[2], interpret)
    q, k, v = _padded(q * scale, more), _padded(k, more_keys), _padded(v, more_keys)
    out = jax.vmap(run)(*(jnp.moveaxis(x, 2, 1) for x in (q, k, v)), ids)
    return jnp.moveaxis(out, 1, 2)[:, :length]


def _padded(x: Array, more: int, value: int = 0) -> Array:
    """`more` values after the second axis."""
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), constant_values=value) if more else x
