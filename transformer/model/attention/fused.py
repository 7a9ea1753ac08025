"""The accelerators' own kernels: cuDNN through `jax.nn`, and tokamax (Triton and Mosaic) where it is installed."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.scores import Bias, Score
from transformer.platforms import target

CUDNN_WIDTH = 128  # the widest head that every GPU's kernel takes


def kernel(q: Any, k: Any, v: Any, limits: masks.Band, score: Score | None, regular: bool) -> tuple[str | None, str]:
    """The kernel that supports this call ("cudnn", "tokamax" or None), and why; it depends on shapes, types and the
    platform only. `regular`: there are no segments, and positions are consecutive. Lengths are supported."""
    platform = target()
    if platform not in ("gpu", "tpu"):
        return None, f"it needs a GPU or a TPU, and this is compiled for {platform}"
    if not (score is None or isinstance(score, Bias)):
        return None, "no kernel takes a score function that does more than add a bias"
    left, right = limits
    plain = score is None and regular
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = half and k.shape[-1] == v.shape[-1] <= CUDNN_WIDTH and k.shape[-1] % 8 == 0
    causal = right == 0 and q.shape[1] == k.shape[1]
    if platform == "gpu" and plain and fits and (causal or (left, right) == (None, None)):
        return "cudnn", "cuDNN takes 16-bit full and causal attention, and causal windows"
    if importlib.util.find_spec("tokamax") is not None:
        return "tokamax", "what cuDNN does not take"
    what = "this call" if plain else "segments, biases and positions of one's own"
    return None, f"cuDNN does not take {what} in {q.dtype}, and tokamax, which may, is not installed"


def fused(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    where: masks.Visibility,
    consecutive: bool,
    score: Score | None,
    scale: float,
) -> Float[Array, "B L H M"]:
    """`dense` by a kernel. Tokamax gets biases, and masks that it cannot build, as [L, S] arrays. ValueError: no kernel
    supports this call."""
    name, why = kernel(q, k, v, where.limits, score, consecutive and where.q_segments is None)
    if name is None:
        raise ValueError(f"backend='fused' cannot do this: {why}; use backend='blockwise' or 'banded'")
    if name == "cudnn":
        left, right = where.limits
        lengths: dict[str, Any] = {} if where.k_lengths is None else {
            "query_seq_lengths": jnp.full(q.shape[0], q.shape[1], jnp.int32),
            "key_value_seq_lengths": jnp.maximum(where.k_lengths, 1),  # a row of padding stays finite
        }  # fmt: skip
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=right == 0,
            local_window_size=None if left is None else (left, 0),
            implementation="cudnn",
            **lengths,
        )
    import tokamax

    mask = where.mask()
    mask = None if mask is None else mask[:, None]
    added = None if not isinstance(score, Bias) else score.bias(where.q_positions, where.k_positions).astype(q.dtype)
    return tokamax.dot_product_attention(q, k, v, added, mask, scale=scale)
