"""Losses and metrics as (sum, weight) pairs, added over rows, batches and devices, and divided once at the end."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer.platforms import length_shards, row_shards, tuned

Pair = tuple[Float[Array, ""], Float[Array, ""]]
RowPair = tuple[Float[Array, " B"], Float[Array, " B"]]


def cross_entropy(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    label_smoothing: float = 0.0,
) -> dict[str, RowPair]:
    """Metrics of each row, each a (sum, weight) pair over the tokens with weight 1. Tokens with weight 0 have no
    influence, whatever their logits and targets are. A target outside the vocabulary gives NaN.

    `loss` is the smoothed cross-entropy (Szegedy et al. 2016; paper, section 5.4) against the distribution q = (1 - ε)
    · onehot + ε / V, in closed form, without a one-hot array:

        -Σ q log p = logsumexp(z) - (1 - ε) z_target - ε mean(z)

    `nll` is the same with ε = 0 (nats), `token_accuracy` the share of target tokens that the model ranks first.
    """
    total, weights = weights.sum(axis=1), _checked(targets, weights, logits.shape[-1])
    sums = _cross_entropy(_counted(logits, weights), targets, weights, label_smoothing)
    return {name: (value, total) for name, value in sums.items()}


def _checked(targets: Array, weights: Array, vocabulary: int) -> Array:
    """The weights, with NaN where a target that counts is outside the vocabulary."""
    known = (targets >= 0) & (targets < vocabulary)
    return jnp.where(known | (weights == 0), weights, jnp.nan)


def _counted(x: Array, weights: Array) -> Array:
    """0 where the weight is 0: a NaN there would reach the sums and gradients, because 0 · NaN is NaN."""
    return jnp.where(weights[..., None] == 0, 0, x)


def _cross_entropy(logits: Array, targets: Array, weights: Array, label_smoothing: float) -> dict[str, Array]:
    """The sum of each metric for each row, of `_counted` logits."""
    logits = logits.astype(jnp.float32)
    # Compare and sum instead of a gather: it fuses, and its gradient is a compare, not a scatter.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.where(is_target, logits, 0).sum(axis=-1)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    nll = log_total - target_logit
    loss = nll
    if label_smoothing:
        loss = log_total - (1 - label_smoothing) * target_logit - label_smoothing * logits.mean(axis=-1)
    # Ties count as right.
    correct = target_logit >= logits.max(axis=-1)
    each = {"loss": loss, "nll": nll, "token_accuracy": correct}
    return {name: (values * weights).sum(axis=1) for name, values in each.items()}


def squared_error(
    forecasts: Float[Array, "B T C"], targets: Float[Array, "B T C"], rows: Bool[Array, " B"]
) -> dict[str, RowPair]:
    """`loss` (mean squared error) and `mae` (mean absolute error) of each row with True in `rows`, over its values."""
    error = jnp.where(rows[:, None, None], forecasts.astype(jnp.float32) - targets, 0)
    values = rows.astype(jnp.float32) * (error.shape[1] * error.shape[2])
    return {"loss": ((error**2).sum(axis=(1, 2)), values), "mae": (jnp.abs(error).sum(axis=(1, 2)), values)}


def output_cross_entropy(
    x: Float[Array, "B L D"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"] | None,
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    label_smoothing: float = 0.0,
) -> dict[str, Pair | RowPair]:
    """`cross_entropy` of the logits x · table^T + bias, without holding all logits at once. It scans over slices of the
    length axis and computes the gradient of "loss", a sum over the batch, in the same pass. "nll" and "token_accuracy"
    are per row and have no gradient. Where rows or positions are sharded over devices, each shard scans separately with
    a whole table, and the sums are added once at the end, not over the devices in every slice."""
    (batch, length), total = targets.shape, weights.sum(axis=1)
    weights = _checked(targets, weights, table.shape[0])
    of_rows, of_lengths = row_shards(), length_shards()
    shares, part = of_rows * of_lengths, length // of_lengths
    slice_length = max(1, min(part, tuned().loss_tokens * of_rows // max(1, batch)))
    slices = -(-part // slice_length)

    def cut(y: Array) -> Array:
        """[B, L, ...] -> [shard, slice, row, position, ...]"""
        rest = y.shape[2:]
        y = y.reshape(batch, of_lengths, part, *rest)
        y = jnp.pad(y, [(0, 0), (0, 0), (0, slices * slice_length - part)] + [(0, 0)] * len(rest))
        y = y.reshape(of_rows, batch // of_rows, of_lengths, slices, slice_length, *rest)
        y = jnp.moveaxis(y, 1, 3).reshape(shares, slices, batch // of_rows, slice_length, *rest)
        return nn.with_logical_constraint(y, ("shares",) + (None,) * (y.ndim - 1))

    def shared(y: Array) -> Array:
        axes = ("vocabulary", None)[: y.ndim]
        copies = jnp.broadcast_to(nn.with_logical_constraint(y, axes), (shares, *y.shape))
        return nn.with_logical_constraint(copies, ("shares", *axes))

    each = jax.vmap(lambda *share: _sliced(*share, label_smoothing))
    loss, nll, correct = each(cut(x), jax.tree.map(shared, (table, bias)), cut(targets), cut(weights))
    nll, correct = (x.reshape(of_rows, of_lengths, -1).sum(axis=1).reshape(batch) for x in (nll, correct))
    rows = {"nll": (nll, total), "token_accuracy": (correct, total)}
    return {"loss": (loss.sum(), total.sum()), **rows}


def _slice_logits(x: Array, output: Any) -> tuple[Array, Array, Array]:
    """x [tokens, D], the table in the type of x, and logits [tokens, V] in float32. `output` is the table and the bias,
    which may be None."""
    flat, (table, bias) = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), output
    table = table.astype(x.dtype)
    logits = jnp.matmul(flat, table.T, preferred_element_type=jnp.float32)
    return flat, table, logits if bias is None else logits + bias


def _slice_loss(
    logits: Array, targets: Array, weights: Array, label_smoothing: float
) -> tuple[Array, tuple[Array, Array]]:
    logits = logits.reshape(*targets.shape, logits.shape[-1])
    metrics = _cross_entropy(logits, targets, weights, label_smoothing)
    return metrics["loss"].sum(), (metrics["nll"], metrics["token_accuracy"])


def _nothing(targets: Array) -> tuple[Array, Array, Array]:
    """Initial sums, for slices [slice, row, position]."""
    of_rows = jnp.zeros(targets.shape[1])
    return jnp.zeros(()), of_rows, of_rows


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sliced(x: Array, output: Any, targets: Array, weights: Array, label_smoothing: float) -> tuple[Array, ...]:
    def one(sums: Any, part: Any) -> tuple[Any, None]:
        loss, others = _slice_loss(_slice_logits(part[0], output)[2], part[1], part[2], label_smoothing)
        return jax.tree.map(jnp.add, sums, (loss, *others)), None

    return jax.lax.scan(one, _nothing(targets), (_counted(x, weights), targets, weights))[0]


def _sliced_forward(
    x: Array, output: Any, targets: Array, weights: Array, label_smoothing: float
) -> tuple[tuple[Array, ...], tuple[Array, Any]]:
    def one(carry: tuple[Any, Any], part: tuple[Array, ...]) -> tuple[tuple[Any, Any], Array]:
        sums, output_gradient = carry
        flat, table, logits = _slice_logits(part[0], output)
        (loss, others), gradient = jax.value_and_grad(_slice_loss, has_aux=True)(
            logits, part[1], part[2], label_smoothing
        )
        # The products of the gradient are in the type of x as well, and the table's sum is in float32.
        rounded = gradient.astype(x.dtype)
        more = (
            jnp.einsum("tv,td->vd", rounded, flat, preferred_element_type=jnp.float32),
            None if output[1] is None else gradient.sum(axis=0),
        )
        sums = jax.tree.map(jnp.add, sums, (loss, *others))
        return (sums, jax.tree.map(jnp.add, output_gradient, more)), (rounded @ table).reshape(part[0].shape)

    start = (_nothing(targets), jax.tree.map(jnp.zeros_like, output))
    (sums, output_gradient), x_gradient = jax.lax.scan(one, start, (_counted(x, weights), targets, weights))
    return sums, (x_gradient, output_gradient)


def _sliced_backward(
    label_smoothing: float, gradients: tuple[Array, Any], cotangents: tuple[Array, ...]
) -> tuple[Any, ...]:
    x_gradient, output_gradient = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients)
    return x_gradient, output_gradient, None, None


_sliced.defvjp(_sliced_forward, _sliced_backward)


def add(left: dict[str, Pair], right: dict[str, Pair]) -> dict[str, Pair]:
    """Adds sums and weights."""
    return jax.tree.map(jnp.add, left, right)


def means(metrics: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Sum / weight of every metric; NaN where the weight is 0."""
    return {
        name: float(total) / float(weight) if float(weight) else math.nan for name, (total, weight) in metrics.items()
    }
