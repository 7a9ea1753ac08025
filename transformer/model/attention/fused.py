"""The accelerators' own kernels: cuDNN by way of `jax.nn`, and tokamax (Triton and Mosaic) where it is installed."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.model import masks

CUDNN_WIDTH = 128  # the widest head that every GPU's kernel takes


def kernel(q: Any, k: Any, v: Any, limits: masks.Band, plain: bool) -> tuple[str | None, str]:
    """The kernel that takes this call ("cudnn", "tokamax" or None), and why; from shapes, dtypes and the device only.

    `plain`: neither segments nor a bias nor positions of the caller's.
    """
    platform = jax.default_backend()
    if platform not in ("gpu", "tpu"):
        return None, f"it needs a GPU or a TPU, and this process runs on {platform}"
    left, right = limits
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
    limits: masks.Band,
    q_positions: Int[Array, "#B L"],
    k_positions: Int[Array, "#B S"],
    q_segments: Int[Array, "#B L"] | None,
    k_segments: Int[Array, "#B S"] | None,
    bias: Any,
    scale: float,
    plain: bool,
) -> Float[Array, "B L H M"]:
    """`dense` by a kernel. Biases and masks that no kernel makes itself are given to tokamax as [L, S] arrays.

    ValueError: no kernel takes this call.
    """
    name, why = kernel(q, k, v, limits, plain)
    if name is None:
        raise ValueError(f"backend='fused' cannot do this: {why}; use backend='blockwise' or 'banded'")
    if name == "cudnn":
        left, right = limits
        window = None if left is None else (left, 0)
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=right == 0, local_window_size=window, implementation="cudnn"
        )
    import tokamax

    mask = masks.visible(q_positions, k_positions, q_segments, k_segments, limits)[:, None]
    added = None if bias is None else bias(q_positions, k_positions).astype(q.dtype)
    return tokamax.dot_product_attention(q, k, v, added, mask, scale=scale)
