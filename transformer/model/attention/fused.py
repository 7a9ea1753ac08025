"""The accelerators' own kernels: cuDNN through `jax.nn`, and tokamax (Triton and Mosaic) where it is installed."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer.model import masks
from transformer.model.attention.marks import unmarked
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
    """`dense` by a kernel. Tokamax gets biases, and masks that it cannot build, as [L, S] arrays. A kernel may multiply
    what it hides by 0, so it gets 0 for what is marked, and the queries that see NaN, or nothing, are filled in here.
    ValueError: no kernel supports this call."""
    name, why = kernel(q, k, v, where.limits, score, consecutive and where.q_segments is None)
    if name is None:
        raise ValueError(f"backend='fused' cannot do this: {why}; use backend='blockwise' or 'banded'")
    wrong, hidden = jnp.isnan(q[..., 0]), jnp.isnan(k[..., 0])  # [B, L, H], [B, S, G]
    q, k = unmarked(q), unmarked(k)
    if name == "cudnn":
        left, right = where.limits
        sees, spoilt = _of_runs(where, hidden)
        lengths: dict[str, Any] = {} if where.k_lengths is None else {
            "query_seq_lengths": jnp.full(q.shape[0], q.shape[1], jnp.int32),
            "key_value_seq_lengths": jnp.maximum(where.k_lengths, 1),  # a row of padding stays finite
        }  # fmt: skip
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=right == 0,
            local_window_size=None if left is None else (left, 0),
            implementation="cudnn",
            **lengths,
        )
    else:
        import tokamax

        mask = where.mask()
        seen = jnp.ones((1, q.shape[1], k.shape[1]), bool) if mask is None else mask
        sees, spoilt = seen.any(axis=-1), (seen[..., None] & hidden[:, None]).any(axis=2)
        mask = None if mask is None else mask[:, None]
        bias = None if not isinstance(score, Bias) else score.bias(where.q_positions, where.k_positions).astype(q.dtype)
        out = tokamax.dot_product_attention(q, k, v, bias, mask, scale=scale)
    of_heads = jnp.repeat(spoilt, q.shape[2] // k.shape[2], axis=2) | wrong
    return jnp.where(sees[..., None, None], jnp.where(of_heads[..., None], jnp.nan, out), 0)


def _of_runs(where: masks.Visibility, hidden: Bool[Array, "B S G"]) -> tuple[Bool[Array, "#B L"], Bool[Array, "B L G"]]:
    """Whether each query sees a key, and whether it sees a marked one, where it sees a run of keys by index. So no
    [L, S] array is made."""
    (left, right), keys, places = where.limits, hidden.shape[1], jnp.arange(where.q_positions.shape[1])[None]
    first = jnp.zeros_like(places) if left is None else jnp.clip(places - left, 0, keys)
    last = jnp.full_like(places, keys) if right is None else jnp.clip(places + right + 1, 0, keys)
    if where.k_lengths is not None:
        last = jnp.minimum(last, where.k_lengths[:, None])
    before = jnp.pad(jnp.cumsum(hidden.astype(jnp.int32), axis=1), ((0, 0), (1, 0), (0, 0)))  # marked keys before each
    until, since = (jnp.take_along_axis(before, at[..., None], axis=1) for at in (last, jnp.minimum(first, last)))
    return last > first, until > since
