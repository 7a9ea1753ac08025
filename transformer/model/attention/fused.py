"""Attention by an accelerator's own kernel (`transformer.model.attention.kernels` says which), one device at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.kernels import Padding, kernel
from transformer.model.attention.marks import unmarked
from transformer.model.attention.scores import Score
from transformer.model.attention.splash import splash
from transformer.model.attention.spoilt import spoilt
from transformer.platforms import HEAD_AXIS, ROW_AXES


def fused(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *,
    where: masks.Visibility,
    consecutive: bool,
    score: Score | None,
    scale: float,
    finite: bool = False,
) -> Float[Array, "B L H M"]:
    """`dense` by a kernel. A kernel may multiply what it hides by 0, so it gets 0 for what is marked, unless all is
    known to be `finite`, and the queries that see NaN, or nothing, are filled in here. A document is a run of one
    segment's id. ValueError: no kernel supports this call."""
    name, why = kernel(q, k, v, where.limits, score, padding_of(where), consecutive)
    if name is None:
        raise ValueError(f"backend='fused' cannot do this: {why}; use backend='blockwise' or 'banded'")
    if where.limits[1] == 0 and consecutive and q.shape[1] == k.shape[1]:
        where = where._replace(k_lengths=None)  # only padding queries come after padding
    call, hidden = CALLS[name], jnp.isnan(k[..., 0])  # [B, S, G]
    sees, wrong = spoilt(where, hidden, consecutive)
    if finite:
        out = call(q, k, v, where, consecutive, scale)
    else:
        out = call(unmarked(q), unmarked(k), v, where, consecutive, scale)
        of_heads = jnp.repeat(wrong, q.shape[2] // k.shape[2], axis=2) | jnp.isnan(q[..., 0])  # [B, L, H]
        out = jnp.where(of_heads[..., None], jnp.nan, out)
    return out if sees is None else jnp.where(sees[..., None, None], out, 0)


def padding_of(where: masks.Visibility) -> Padding:
    """How the call marks padding."""
    return "segments" if where.q_segments is not None else "none" if where.k_lengths is None else "lengths"


def _cudnn(q: Array, k: Array, v: Array, where: masks.Visibility, consecutive: bool, scale: float) -> Array:
    left, right = where.limits

    def call(q: Array, k: Array, v: Array, lengths: Array | None) -> Array:
        given: dict[str, Any] = {} if lengths is None else {
            "query_seq_lengths": jnp.full(q.shape[0], q.shape[1], jnp.int32),
            "key_value_seq_lengths": jnp.maximum(lengths, 1),  # a row of padding stays finite
        }  # fmt: skip
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=right == 0,
            local_window_size=None if left is None else (left, 0),
            implementation="cudnn",
            **given,
        )

    return on_each_device(call, q, k, v, where.k_lengths)


def _cudnn_masked(q: Array, k: Array, v: Array, where: masks.Visibility, consecutive: bool, scale: float) -> Array:
    ids, causal = where.with_ids(), where.limits[1] == 0 and consecutive and q.shape[1] == k.shape[1]

    def call(q: Array, k: Array, v: Array, *of_rows: Any) -> Array:
        mask = masks.Visibility(ids.limits, *of_rows).mask()
        if mask is not None:  # a query that sees nothing sees all, so that it stays finite
            mask = (mask | ~mask.any(axis=-1, keepdims=True))[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, is_causal=causal, implementation="cudnn")

    return on_each_device(call, q, k, v, *ids[1:5])


def _splash(q: Array, k: Array, v: Array, where: masks.Visibility, consecutive: bool, scale: float) -> Array:
    ids = where.with_ids()

    def call(q: Array, k: Array, v: Array, q_segments: Array | None, k_segments: Array | None) -> Array:
        return splash(q, k, v, q_segments, k_segments, limits=ids.limits, scale=scale)

    return on_each_device(call, q, k, v, ids.q_segments, ids.k_segments)


# Kernel -> function of q, k and v without marks, the visibility, whether positions are consecutive, and the scale.
CALLS: dict[str, Callable[[Array, Array, Array, masks.Visibility, bool, float], Array]] = {
    "cudnn": _cudnn,
    "cudnn_masked": _cudnn_masked,
    "splash": _splash,
}


def on_each_device(
    call: Callable[..., Array],
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G M"],
    *of_rows: Array | None,
) -> Float[Array, "B L H M"]:
    """`call` on the rows and heads of each device of the mesh: XLA cannot split a kernel. `of_rows` are arrays
    [#B, ...]; rows and heads that do not divide are computed by every device."""
    of_rows = tuple(x if x is None else jnp.broadcast_to(x, (q.shape[0], *x.shape[1:])) for x in of_rows)
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    ) if mesh.axis_names else ()  # fmt: skip
    if not axes:
        return call(q, k, v, *of_rows)
    rows: Any = tuple(axis for axis in ROW_AXES if axis in axes)
    shards = 1
    for axis in rows:
        shards *= mesh.shape[axis]
    rows = rows if q.shape[0] % shards == 0 else None
    heads = HEAD_AXIS if HEAD_AXIS in axes and k.shape[2] % mesh.shape[HEAD_AXIS] == 0 else None
    spec = PartitionSpec(rows, None, heads, None)
    return jax.shard_map(
        call,
        mesh=mesh,
        in_specs=(spec, spec, spec, *(None if x is None else PartitionSpec(rows) for x in of_rows)),
        out_specs=spec,
        axis_names=set(axes),
        check_vma=False,
    )(q, k, v, *of_rows)
