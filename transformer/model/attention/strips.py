"""Attention of short rows on processors: strips of queries, each with the blocks of keys that it can see.

             block 0  1  2  3
    strip 0        m                   m: part of it is hidden, and needs a mask
    strip 1        .  m                .: all of it is seen
    strip 2        .  .  m             what is hidden as a whole is not computed
    strip 3        .  .  .  m

All are unrolled and their weights kept for the backward pass, so rows are short; longer ones go to `blockwise`, and
windows to `banded`.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.model import masks
from transformer.model.attention.marks import unmarked
from transformer.model.attention.pairs import attend_strip, by_heads, gradients, turned
from transformer.model.attention.scores import Score
from transformer.model.attention.spoilt import spoilt_heads
from transformer.platforms import tuned


def strips(
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
    """`dense` by strips. What is marked is 0 in the products, unless all is known to be `finite`, and the queries that
    see it are NaN. ValueError: a score function, which takes scores in another order."""
    if score is not None:
        raise ValueError("backend='strips' takes no score function: use backend='dense'")
    _, length, heads, _ = q.shape
    cut = Cut.of(length, k.shape[1], where.limits, consecutive)
    wrong = None if finite else spoilt_heads(where, q, k, consecutive)
    q, k = (q, k) if finite else (unmarked(q), unmarked(k))
    k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) if x.shape[2] < heads else x for x in (k, v))
    ids = where.with_ids()
    out = _strips(cut, q * scale, k, v, (ids.q_positions, ids.k_positions, ids.q_segments, ids.k_segments))
    return out if wrong is None else jnp.where(wrong[..., None], jnp.nan, out)


Ids = tuple[Array, Array, Array | None, Array | None]  # as in `masks.Visibility`


class Cut(NamedTuple):
    """How rows are cut into strips of queries and blocks of keys."""

    limits: masks.Band
    by_index: bool  # what a query sees follows from indices
    strip: int  # queries

    @classmethod
    def of(cls, length: int, keys: int, limits: masks.Band, consecutive: bool) -> "Cut":
        """The first of `tuned().strips` with few enough pairs of a strip and a block, or the last."""
        sizes = tuned().strips or (length,)
        cuts = [cls(limits, consecutive and length == keys and limits != (None, None), size) for size in sizes]
        return next((cut for cut in cuts if cut.is_few(length, keys)), cuts[-1])

    def is_few(self, length: int, keys: int) -> bool:
        """Whether a compiler can unroll all pairs."""
        return sum(len(seen) for _, seen in self.pairs(length, keys)) <= tuned().strip_pairs

    def strips(self, length: int) -> list[slice]:
        """The queries of each strip."""
        count = max(1, length // self.strip)
        return [slice(a, b) for a, b in itertools.pairwise(length * i // count for i in range(count + 1))]

    def blocks(self, keys: int) -> list[slice]:
        """The keys of each block."""
        return self.strips(keys) if self.by_index else [slice(0, keys)]

    def pairs(self, length: int, keys: int) -> list[tuple[slice, list[int]]]:
        """Each strip, with the blocks that it can see part of."""
        left, right = self.limits

        def sees(q: slice, k: slice) -> bool:
            after = left is None or k.stop - 1 >= q.start - left
            return not self.by_index or (after and (right is None or k.start <= q.stop - 1 + right))

        blocks = list(enumerate(self.blocks(keys)))
        return [(strip, [i for i, block in blocks if sees(strip, block)]) for strip in self.strips(length)]

    def is_whole(self, q: slice, k: slice) -> bool:
        """Whether each query of a strip sees all keys of a block, of the same text."""
        left, right = self.limits
        begins = left is None or (self.by_index and k.start >= q.stop - 1 - left)
        return begins and (right is None or (self.by_index and k.stop - 1 <= q.start + right))

    def scores(self, length: int, keys: int) -> int:
        """How many scores of one head are computed."""
        blocks = [block.stop - block.start for block in self.blocks(keys)]
        return sum((q.stop - q.start) * sum(blocks[i] for i in seen) for q, seen in self.pairs(length, keys))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _strips(cut: Cut, q: Array, k: Array, v: Array, ids: Ids) -> Array:
    """[B, L, H, M] of scaled queries [B, L, H, K], keys [B, S, H, K] and values [B, S, H, M]; `ids` are positions and
    segments."""
    return _forward(cut, q, k, v, ids)[0]


def _forward(cut: Cut, q: Array, k: Array, v: Array, ids: Ids) -> tuple[Array, Any]:
    blocks, pairs = cut.blocks(k.shape[1]), cut.pairs(q.shape[1], k.shape[1])
    keys, values = [by_heads(k[:, block]) for block in blocks], [turned(v[:, block]) for block in blocks]
    hide = partial(_where, cut, ids, [strip for strip, _ in pairs], blocks)
    strips = [attend_strip(i, q[:, strip], keys, values, seen, hide) for i, (strip, seen) in enumerate(pairs)]
    return jnp.concatenate([out for out, _ in strips], axis=1), (q, k, v, ids, [kept for _, kept in strips])


def _backward(cut: Cut, residuals: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, kept = residuals
    blocks, pairs = cut.blocks(k.shape[1]), cut.pairs(q.shape[1], k.shape[1])
    strips = [strip for strip, _ in pairs]
    hide, seen = partial(_where, cut, ids, strips, blocks), [seen for _, seen in pairs]
    of_q, of_d_out = ([x[:, strip] for strip in strips] for x in (q, d_out))
    of_k, of_v = ([x[:, block] for block in blocks] for x in (k, v))
    found = gradients(of_q, of_k, of_v, seen, hide, kept, of_d_out)
    dq, dk, dv = (jnp.concatenate(parts, axis=1).astype(x.dtype) for parts, x in zip(found, (q, k, v), strict=True))
    return dq, dk, dv, None


_strips.defvjp(_forward, _backward)


def _where(
    cut: Cut, ids: Ids, strips: Sequence[slice], blocks: Sequence[slice], i: int, j: int, x: Array, other: float
) -> Array:
    """`pairs.Hide`."""
    q_positions, k_positions, q_segments, k_segments = ids
    queries, keys = strips[i], blocks[j]
    if cut.is_whole(queries, keys) and q_segments is None:
        return x
    q_in, k_in = (None if x is None else x[:, part] for x, part in ((q_segments, queries), (k_segments, keys)))
    mask = masks.visible(q_positions[:, queries], k_positions[:, keys], q_in, k_in, cut.limits)
    return jnp.where(jnp.swapaxes(mask, -1, -2)[:, None], x, other)
