"""Losses and metrics as (sum, weight) pairs, added over rows, batches and devices, and divided once at the end."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer.platforms import length_shards, row_shards, tuned
from transformer.training.token_losses import token_losses

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

    `loss` is the smoothed cross-entropy of `token_losses`, `nll` the same without smoothing (nats), `token_accuracy`
    the share of target tokens that the model ranks first.
    """
    total, weights = weights.sum(axis=1), _checked(targets, weights, logits.shape[-1])
    logits = _counted(logits, weights).astype(jnp.float32)
    found = token_losses(logits, targets, label_smoothing, logits.shape[-1])
    each = {"loss": found.loss, "nll": found.nll, "token_accuracy": found.correct}
    return {name: ((values * weights).sum(axis=1), total) for name, values in each.items()}


def _checked(targets: Array, weights: Array, vocabulary: int) -> Array:
    """The weights, with NaN where a target that counts is outside the vocabulary."""
    known = (targets >= 0) & (targets < vocabulary)
    return jnp.where(known | (weights == 0), weights, jnp.nan)


def _counted(x: Array, weights: Array) -> Array:
    """0 where the weight is 0: a NaN there would reach the sums and gradients, because 0 · NaN is NaN."""
    return jnp.where(weights[..., None] == 0, 0, x)


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
    vocabulary: int | None = None,
) -> dict[str, Pair | RowPair]:
    """`cross_entropy` of the logits x · table^T + bias, without holding all logits at once. It scans over slices of the
    length axis and computes the gradient of "loss", a sum over the batch, in the same pass. "nll" and "token_accuracy"
    are per row and have no gradient. Rows of the table from `vocabulary` on (default: none) only fill it up: they are
    no tokens, have no probability, and get a gradient of 0.

    Where rows or positions are sharded over devices, each shard scans separately with a whole table, which is gathered
    once in the type of x, and the gradients are added once at the end, in float32, not over the devices in every
    slice."""
    vocabulary = table.shape[0] if vocabulary is None else vocabulary
    total, weights = weights.sum(axis=1), _checked(targets, weights, vocabulary)
    loss, nll, correct = _sliced(x, (table, bias), targets, weights, label_smoothing, vocabulary)
    return {"loss": (loss, total.sum()), "nll": (nll, total), "token_accuracy": (correct, total)}


def _slice_length(rows: int, length: int, vocabulary: int) -> int:
    """How many positions a slice of a device's rows has. Slices chosen by bytes all have as many, where that takes
    less than twice as many slices, because a rest is filled up."""
    if not tuned().loss_bytes:
        tokens = max(tuned().loss_tokens, tuned().loss_logits // vocabulary)
        return max(1, min(length, tokens // max(1, rows)))
    slices = max(1, -(-4 * rows * length * vocabulary // tuned().loss_bytes))
    even = next((count for count in range(slices, 2 * slices) if length % count == 0), slices)
    return max(1, -(-length // even))


def _parts(slice_length: int, *arrays: Array) -> list[Array]:
    """[B, L, ...] -> [shard, slice, row, position, ...]; the last slice of a shard is padded with zeros."""
    of_rows, of_lengths = row_shards(), length_shards()

    def cut(y: Array) -> Array:
        (batch, length), others = y.shape[:2], y.shape[2:]
        part = length // of_lengths
        slices, rows = -(-part // slice_length), batch // of_rows
        y = y.reshape(batch, of_lengths, part, *others)
        y = jnp.pad(y, [(0, 0), (0, 0), (0, slices * slice_length - part)] + [(0, 0)] * len(others))
        y = jnp.moveaxis(y.reshape(of_rows, rows, of_lengths, slices, slice_length, *others), 1, 3)
        y = y.reshape(of_rows * of_lengths, slices, rows, slice_length, *others)
        return nn.with_logical_constraint(y, ("shares",) + (None,) * (y.ndim - 1))

    return [cut(y) for y in arrays]


def _whole(parts: Array, length: int) -> Array:
    """The inverse of `_parts`."""
    of_rows, of_lengths = row_shards(), length_shards()
    _, slices, rows, positions, *others = parts.shape
    y = jnp.moveaxis(parts.reshape(of_rows, of_lengths, slices, rows, positions, *others), 3, 1)
    y = y.reshape(of_rows * rows, of_lengths, slices * positions, *others)[:, :, : length // of_lengths]
    return y.reshape(of_rows * rows, length, *others)


def _shared(y: Array) -> Array:
    """A copy [shard, ...] for each shard of the rows and positions."""
    axes, shards = ("vocabulary", None)[: y.ndim], row_shards() * length_shards()
    copies = jnp.broadcast_to(nn.with_logical_constraint(y, axes), (shards, *y.shape))
    return nn.with_logical_constraint(copies, ("shares", *axes))


def _slice_logits(x: Array, output: Any) -> tuple[Array, Array]:
    """x [tokens, D], and logits [tokens, V] in float32. `output` is the table and the bias, which may be None."""
    flat, (table, bias) = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), output
    logits = jnp.matmul(flat, table.T, preferred_element_type=jnp.float32)
    return flat, logits if bias is None else logits + bias


def _slice_loss(
    logits: Array, targets: Array, weights: Array, label_smoothing: float, vocabulary: int
) -> tuple[Array, tuple[Array, Array]]:
    # On a TPU, logits that are split into rows and positions would be copied.
    found = token_losses(logits, targets.reshape(-1), label_smoothing, vocabulary)
    loss, nll, correct = (x.reshape(targets.shape) * weights for x in (found.loss, found.nll, found.correct))
    return loss.sum(), (nll.sum(axis=1), correct.sum(axis=1))


def _nothing(targets: Array) -> tuple[Array, Array, Array]:
    """Initial sums, for slices [slice, row, position]."""
    of_rows = jnp.zeros(targets.shape[1])
    return jnp.zeros(()), of_rows, of_rows


def _scanned(share: Any, x: Array, output: Any, targets: Array, weights: Array) -> Any:
    """`share(slices of x, table and bias, slices of targets, of weights)` of each shard of the rows and
    positions. Tables are shared in the type of x."""
    table, bias = output
    length = _slice_length(x.shape[0] // row_shards(), x.shape[1] // length_shards(), table.shape[0])
    x, targets, weights = _parts(length, x, targets, weights)
    copies = jax.tree.map(_shared, (table.astype(x.dtype), bias))
    return jax.vmap(share)(_counted(x, weights), copies, targets, weights)


def _summed(sums: tuple[Array, Array, Array], batch: int) -> tuple[Array, Array, Array]:
    """The loss of the batch, and the other sums of each row [B], from those of each shard."""
    loss, *others = sums
    nll, correct = (x.reshape(row_shards(), length_shards(), -1).sum(axis=1).reshape(batch) for x in others)
    return loss.sum(), nll, correct


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sliced(
    x: Array, output: Any, targets: Array, weights: Array, label_smoothing: float, vocabulary: int
) -> tuple[Array, ...]:
    def share(x: Array, output: Any, targets: Array, weights: Array) -> tuple[Array, ...]:
        def one(sums: Any, part: Any) -> tuple[Any, None]:
            logits = _slice_logits(part[0], output)[1]
            loss, others = _slice_loss(logits, part[1], part[2], label_smoothing, vocabulary)
            return jax.tree.map(jnp.add, sums, (loss, *others)), None

        return jax.lax.scan(one, _nothing(targets), (x, targets, weights))[0]

    return _summed(_scanned(share, x, output, targets, weights), x.shape[0])


def _sliced_forward(
    x: Array, output: Any, targets: Array, weights: Array, label_smoothing: float, vocabulary: int
) -> tuple[tuple[Array, ...], tuple[Array, Any]]:
    def share(x: Array, output: Any, targets: Array, weights: Array) -> Any:
        def one(carry: tuple[Any, Any], part: tuple[Array, ...]) -> tuple[tuple[Any, Any], Array]:
            sums, output_gradient = carry
            flat, logits = _slice_logits(part[0], output)
            (loss, others), gradient = jax.value_and_grad(_slice_loss, has_aux=True)(
                logits, part[1], part[2], label_smoothing, vocabulary
            )
            # The products of the gradient are in the type of x as well, and the table's sum is in float32.
            rounded = gradient.astype(x.dtype)
            more = (
                jnp.einsum("tv,td->vd", rounded, flat, preferred_element_type=jnp.float32),
                None if output[1] is None else gradient.sum(axis=0),
            )
            sums = jax.tree.map(jnp.add, sums, (loss, *others))
            return (sums, jax.tree.map(jnp.add, output_gradient, more)), (rounded @ output[0]).reshape(part[0].shape)

        start = (_nothing(targets), jax.tree.map(lambda y: jnp.zeros(y.shape), output))
        return jax.lax.scan(one, start, (x, targets, weights))

    (sums, output_gradient), x_gradient = _scanned(share, x, output, targets, weights)
    output_gradient = jax.tree.map(lambda y: y.sum(axis=0), output_gradient)
    return _summed(sums, x.shape[0]), (_whole(x_gradient, x.shape[1]), output_gradient)


def _sliced_backward(
    label_smoothing: float, vocabulary: int, gradients: tuple[Array, Any], cotangents: tuple[Array, ...]
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
