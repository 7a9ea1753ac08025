"""Sliding windows on processors: rows are folded into chunks, and a chunk is cut into strips of queries that are about
as long as the window, each with the blocks of keys that it can see part of.

    chunk 0  | block block block |                   of one row: a chunk also sees the end of the chunk before it,
    chunk 1                  [halo| block block block |      and the beginning of the one after it

All chunks are cut alike, so that one strip of all of them is one product. A loop takes some chunks at a time. The
backward pass computes the weights again: memory besides arguments, outputs and gradients is that of one turn of the
loop. The pairs of a strip and a block are unrolled, so the window is narrow.
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from transformer.model import masks
from transformer.model.attention.pairs import Kept, attend_strip, by_heads, gradients, turned
from transformer.model.attention.tiles import NOBODY
from transformer.platforms import tuned


class Fold(NamedTuple):
    """How rows are folded and chunks are cut. Indices are relative to the first query of a chunk."""

    limits: tuple[int, int]
    chunks: int  # of a row
    length: int  # of a chunk
    strips: tuple[slice, ...]
    blocks: tuple[slice, ...]  # of keys: of the halo before, of the chunk, of the halo after

    @classmethod
    def of(cls, length: int, limits: masks.Band) -> "Fold":
        """Strips of half the wider side of the window, within `tuned().window_strip`, and chunks of at most eight
        strips, unless a side of the window is longer."""
        left, right = (length - 1 if side is None else min(side, length - 1) for side in limits)
        narrow, wide = tuned().window_strip or (length, length)
        widest = max(left, right)
        strip = min(wide, max(narrow, (1 << max(0, widest - 1).bit_length()) // 2))
        chunks = -(-length // (STRIPS * strip))
        if length < chunks * widest:  # a halo is of one chunk
            chunks = max(1, length // max(1, widest))
        chunk = -(-length // chunks)
        before, after = (left, right) if chunks > 1 else (0, 0)
        strips = _cut(0, chunk, strip)
        blocks = (*_cut(-before, 0, strip), *strips, *_cut(chunk, chunk + after, strip))
        return cls((left, right), chunks, chunk, strips, blocks)

    @property
    def before(self) -> int:
        """Keys of the halo before a chunk."""
        return -self.blocks[0].start

    @property
    def after(self) -> int:
        """Keys of the halo after a chunk."""
        return self.blocks[-1].stop - self.length

    def seen(self) -> list[list[int]]:
        """The blocks that each strip sees part of."""
        left, right = self.limits
        sees = lambda q, k: k.stop - 1 >= q.start - left and k.start <= q.stop - 1 + right  # noqa: E731
        return [[j for j, block in enumerate(self.blocks) if sees(strip, block)] for strip in self.strips]

    def is_few(self) -> bool:
        """Whether a compiler can unroll all pairs of a strip and a block."""
        return sum(map(len, self.seen())) <= tuned().strip_pairs

    def scores(self) -> int:
        """How many scores of one head and row are computed."""
        sizes = [block.stop - block.start for block in self.blocks]
        pairs = zip(self.strips, self.seen(), strict=True)
        return self.chunks * sum((strip.stop - strip.start) * sum(sizes[j] for j in seen) for strip, seen in pairs)

    def is_halo(self, j: int) -> bool:
        """Whether a block is of another chunk."""
        return self.blocks[j].start < 0 or self.blocks[j].start >= self.length


STRIPS = 8  # of a chunk, at most, where the window is not wider


def _cut(start: int, stop: int, size: int) -> tuple[slice, ...]:
    """Parts of about `size`, at most."""
    count = -(-(stop - start) // size)
    ends = [start + (stop - start) * i // max(count, 1) for i in range(count + 1)]
    return tuple(slice(a, b) for a, b in itertools.pairwise(ends))


def attend_windows(
    fold: Fold,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H M"],
    q_segments: Integer[Array, "B L"] | None,
    k_segments: Integer[Array, "B L"] | None,
) -> Float[Array, "B L H M"]:
    """Attention of scaled queries; segments are the ids of documents. It is NaN where a visible score is not finite."""
    length, end = q.shape[1], fold.chunks * fold.length - q.shape[1]
    segments: Segments = None if q_segments is None or k_segments is None else (q_segments, k_segments)
    if end:
        q, k, v = (jnp.pad(x, ((0, 0), (0, end), (0, 0), (0, 0))) for x in (q, k, v))
        if segments is None and fold.limits[1]:  # else no query comes before the padding
            segments = (jnp.zeros((q.shape[0], length), jnp.int32),) * 2
        if segments is not None:
            of_q, of_k = (jnp.pad(x, ((0, 0), (0, end)), constant_values=NOBODY) for x in segments)
            segments = of_q, of_k
    return _windows(fold, q, k, v, segments)[:, :length]


Segments = tuple[Array, Array] | None  # of queries and of keys, [B, L]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _windows(fold: Fold, q: Array, k: Array, v: Array, segments: Segments) -> Array:
    return _forward(fold, q, k, v, segments)[0]


def _forward(fold: Fold, q: Array, k: Array, v: Array, segments: Segments) -> tuple[Array, Any]:
    seen = fold.seen()

    def one(_: None, given: Any) -> tuple[None, Any]:
        q, (k, v), ids = given
        keys, values = [by_heads(x) for x in _blocks(fold, k)], [turned(x) for x in _blocks(fold, v)]
        hide = partial(_hide, fold, ids)
        strips = [attend_strip(i, q[:, strip], keys, values, seen[i], hide) for i, strip in enumerate(fold.strips)]
        kept = [kept.of_logsumexp() for _, kept in strips]
        lost = jnp.concatenate([x.lost for x in kept], axis=3)
        logsumexp = jnp.where(lost, jnp.nan, jnp.concatenate([x.shift for x in kept], axis=3))
        return None, (jnp.concatenate([out for out, _ in strips], axis=1), logsumexp)

    turns = _turns(fold, q)
    out, logsumexp = lax.scan(one, None, _given(fold, turns, q, k, v, segments))[1]
    return out.reshape(*q.shape[:3], -1), (q, k, v, segments, logsumexp)


def _backward(fold: Fold, residuals: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segments, logsumexp = residuals
    seen = fold.seen()

    def one(_: None, given: Any) -> tuple[None, Any]:
        (q, (k, v), ids), d_out, logsumexp = given
        lost = jnp.isnan(logsumexp)
        shift = jnp.where(lost, 0, logsumexp)
        kept = [Kept(None, shift[..., x], jnp.ones_like(shift[..., x]), lost[..., x]) for x in fold.strips]
        of_q, of_d_out = ([x[:, strip] for strip in fold.strips] for x in (q, d_out))
        hide = partial(_hide, fold, ids)
        dq, *of_keys = gradients(of_q, _blocks(fold, k), _blocks(fold, v), seen, hide, kept, of_d_out)
        inside = [j for j in range(len(fold.blocks)) if not fold.is_halo(j)]
        parts = (slice(inside[0]), slice(inside[0], inside[-1] + 1), slice(inside[-1] + 1, None))
        joined = [[_joined(x[part], x[inside[0]]) for part in parts] for x in of_keys]
        return None, (jnp.concatenate(dq, axis=1), *joined)

    turns = logsumexp.shape[0]
    given = (_given(fold, turns, q, k, v, segments), _grouped(turns, fold, d_out), logsumexp)
    dq, of_k, of_v = lax.scan(one, None, given)[1]
    return (
        dq.reshape(q.shape).astype(q.dtype),
        _spread(fold, of_k, k).astype(k.dtype),
        _spread(fold, of_v, v).astype(v.dtype),
        None,
    )


_windows.defvjp(_forward, _backward)


def _turns(fold: Fold, q: Array) -> int:
    """Turns of the loop: each takes as many chunks as `tuned().window_turn` allows, and at least one."""
    chunks = q.shape[0] * fold.chunks
    most = max(1, tuned().window_turn // (fold.length * q.shape[2] * q.shape[3]))
    return next(turns for turns in range(1, chunks + 1) if chunks % turns == 0 and chunks // turns <= most)


def _grouped(turns: int, fold: Fold, x: Array) -> Array:
    """[B, L, ...] as [turns, chunks, length of a chunk, ...]."""
    return x.reshape(turns, -1, fold.length, *x.shape[2:])


def _given(fold: Fold, turns: int, q: Array, k: Array, v: Array, segments: Segments) -> Any:
    """What each turn of the loop gets: chunks of queries, of keys and values with their halos, and of ids: whether the
    chunk is the first and the last of its row, and its segments."""
    keys = tuple(_with_halo(fold, turns, x) for x in (k, v))
    place = jnp.arange(fold.chunks)
    ends = [jnp.tile(place == end, q.shape[0]).reshape(turns, -1) for end in (0, fold.chunks - 1)]
    of_rows = None if segments is None else (
        _grouped(turns, fold, segments[0]), _with_halo(fold, turns, segments[1])
    )  # fmt: skip
    return _grouped(turns, fold, q), keys, (*ends, of_rows)


def _with_halo(fold: Fold, turns: int, x: Array) -> tuple[Array, Array, Array]:
    """The end of the chunk before each chunk, the chunk, and the beginning of the one after it; [turns, chunks, ...].
    Chunks at the ends of a row have zeros there."""
    chunks = x.reshape(x.shape[0], fold.chunks, fold.length, *x.shape[2:])
    none = [(0, 0)] * (x.ndim - 1)
    before = jnp.pad(chunks[:, :-1, fold.length - fold.before :], [(0, 0), (1, 0), *none])
    after = jnp.pad(chunks[:, 1:, : fold.after], [(0, 0), (0, 1), *none])
    size = x.shape[0] * fold.chunks // turns
    before, chunks, after = (part.reshape(turns, size, *part.shape[2:]) for part in (before, chunks, after))
    return before, chunks, after


def _spread(fold: Fold, parts: Any, like: Array) -> Array:
    """The transpose of `_with_halo`: what a halo got is added to the chunk that it came from."""
    rows = like.shape[0]
    before, inside, after = (x.reshape(rows, fold.chunks, *x.shape[2:]) for x in parts)
    if fold.before:
        inside = inside.at[:, :-1, fold.length - fold.before :].add(before[:, 1:])
    if fold.after:
        inside = inside.at[:, 1:, : fold.after].add(after[:, :-1])
    return inside.reshape(like.shape)


def _blocks(fold: Fold, parts: tuple[Array, Array, Array]) -> list[Array]:
    """The blocks of keys [chunks, keys, ...] from a turn's halo before, chunk, and halo after."""
    starts = (-fold.before, 0, fold.length)
    return [
        parts[which][:, block.start - starts[which] : block.stop - starts[which]]
        for block in fold.blocks
        for which in [0 if block.start < 0 else 1 if block.start < fold.length else 2]
    ]


def _joined(blocks: list[Array], like: Array) -> Array:
    return jnp.concatenate(blocks, axis=1) if blocks else like[:, :0]


def _hide(fold: Fold, ids: Any, i: int, j: int, x: Array, other: float) -> Array:
    """`pairs.Hide`."""
    first, last, segments = ids
    strip, block, (left, right) = fold.strips[i], fold.blocks[j], fold.limits
    ahead = np.arange(block.start, block.stop)[:, None] - np.arange(strip.start, strip.stop)
    mask: Any = (ahead >= -left) & (ahead <= right)
    if mask.all() and not fold.is_halo(j) and segments is None:
        return x
    mask = jnp.asarray(mask)
    if fold.is_halo(j):
        mask &= ~(first if block.start < 0 else last)[:, None, None]
    if segments is not None:
        of_keys = _blocks(fold, segments[1])[j]
        mask &= of_keys[:, :, None] == segments[0][:, None, strip]
    return jnp.where(jnp.expand_dims(mask, -3), x, other)
