"""Every backend against a float64 loop, in values and gradients; bad input; and what each computes and keeps.

Real tiles are hundreds of positions long. Here they are cut to a few, so that short rows have many of them.
"""

import dataclasses
import importlib
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from transformer import platforms
from transformer.model import masks
from transformer.model.attention import BACKENDS, attend, choose
from transformer.model.masks import band
from transformer.model.positions import T5_BUCKETS, AlibiBias, T5Bias, alibi_slopes, t5_bucket

B, K, M = 2, 5, 7
WITH_SCORES = ("dense", "blockwise", "banded")  # take a score function
ON_CPU = (*WITH_SCORES, "strips")
# The module: `transformer.model.attention.blockwise` as an attribute is the function of that name.
blockwise_backend = importlib.import_module("transformer.model.attention.blockwise")
Arrays = tuple[np.ndarray, ...]


def tensors(seed: int, length: int, keys: int, heads: int, groups: int, dtype: Any = np.float32) -> Arrays:
    """q, k, v, and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    shapes = ((B, length, heads, K), (B, keys, groups, K), (B, keys, groups, M), (B, length, heads, M))
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def cut(patch: pytest.MonkeyPatch, largest: int, smallest: int = 1) -> None:
    """Tiles of `largest` positions (a multiple of 16 up to it, from 16 on), of `smallest` for a narrow band, and strips
    of `largest`; strips of a window of `smallest` to `largest`, and few chunks at a time."""
    of_windows: dict[str, Any] = {
        "window_strip": (min(smallest, largest), largest),
        "window_turn": 1 << 10,
        "strip_pairs": 10**6,
    }
    tune(patch, tile=largest, window_tile=smallest, strips=(largest,), **of_windows)


def tune(patch: pytest.MonkeyPatch, **numbers: Any) -> None:
    """Other numbers for this platform."""
    patch.setitem(platforms.PLATFORMS, "cpu", dataclasses.replace(platforms.PLATFORMS["cpu"], **numbers))


def loop_mask(q_positions: Any, k_positions: Any, q_segments: Any, k_segments: Any, limits: Any) -> np.ndarray:
    left, right = limits
    mask = np.zeros((B, q_positions.shape[1], k_positions.shape[1]), bool)
    for b, i, j in np.ndindex(mask.shape):
        ahead = int(k_positions[b, j]) - int(q_positions[b, i])
        mask[b, i, j] = (
            q_segments[b, i] == k_segments[b, j]
            and (left is None or -ahead <= left)
            and (right is None or ahead <= right)
        )
    return mask


def loop_bias(bias: Any, q_positions: Any, k_positions: Any) -> dict[str, np.ndarray]:
    """What `loop` adds to the scores [B, H, L, S], and the row of the trained table that it comes from."""
    if bias is None:
        return {}
    offset = k_positions[:, None, :].astype(np.int32) - q_positions[:, :, None]
    if isinstance(bias, AlibiBias):
        return {"added": -alibi_slopes(bias.heads)[:, None, None] * np.abs(offset)[:, None]}
    rows = np.asarray(t5_bucket(jnp.asarray(offset), bias.causal))
    return {"added": np.moveaxis(np.asarray(bias.table)[rows], -1, 1), "rows": rows}


def loop(
    q: Any, k: Any, v: Any, cotangent: Any, mask: Any, scale: float = K**-0.5, added: Any = None, rows: Any = None
) -> Arrays:
    """Output and gradients with respect to q, k, v and, where `rows` are given, the table: one query at a time, in
    float64, by the derivative on paper."""
    q, k, v, cotangent = (x.astype(np.float64) for x in (q, k, v, cotangent))
    out, dq, dk, dv = np.zeros_like(cotangent), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    table = np.zeros((T5_BUCKETS, q.shape[2]))
    for b, i, h in itertools.product(range(B), range(q.shape[1]), range(q.shape[2])):
        seen, g = np.flatnonzero(mask[b, i]), h // (q.shape[2] // k.shape[2])
        if not seen.size:
            continue
        keys, values, given_back = k[b, seen, g], v[b, seen, g], cotangent[b, i, h]
        scores = scale * keys @ q[b, i, h]
        if added is not None:
            scores += added[b, h, i, seen]
        p = np.exp(scores - scores.max())
        p /= p.sum()
        out[b, i, h] = p @ values
        ds = p * (values @ given_back - given_back @ out[b, i, h])
        dq[b, i, h] = scale * ds @ keys
        dk[b, seen, g] += scale * np.outer(ds, q[b, i, h])
        dv[b, seen, g] += np.outer(p, given_back)
        if rows is not None:
            np.add.at(table[:, h], rows[b, i, seen], ds)
    return (out, dq, dk, dv) if rows is None else (out, dq, dk, dv, table)


def run(arrays: Arrays, where: dict[str, Any] | None = None, score: Any = None, **options: Any) -> Arrays:
    """Output and gradients of `attend`, the score function's among them, compiled; `where` holds positions and
    segments."""

    def both(q: Any, k: Any, v: Any, cotangent: Any, where: dict[str, Any], score: Any) -> Any:
        out, pull = jax.vjp(lambda q, k, v, score: attend(q, k, v, score=score, **where, **options), q, k, v, score)
        return out, *jax.tree.leaves(pull(cotangent))

    where = jax.tree.map(jnp.asarray, where or {})
    return jax.device_get(jax.jit(both)(*map(jnp.asarray, arrays), where, score))


def close(found: Arrays, expected: Arrays, tolerance: float = 2e-5, says: str = "") -> None:
    """The same numbers, up to `tolerance` of the largest."""
    names = ("out", "dq", "dk", "dv", "table")[: len(expected)]
    for name, x, y in zip(names, found, expected, strict=True):
        atol = tolerance * max(1.0, np.abs(y).max(initial=0.0))
        np.testing.assert_allclose(x.astype(np.float64), y, atol=atol, rtol=tolerance, err_msg=f"{says} {name}")


def in_order(length: int, keys: int) -> Arrays:
    """Positions 0, 1, ... and one segment, for queries and keys."""
    places = tuple(np.broadcast_to(np.arange(size), (B, size)) for size in (length, keys))
    return (*places, *(np.ones_like(x) for x in places))


# --- Dense


@pytest.mark.parametrize(
    ("length", "keys", "heads", "groups", "causal", "window"),
    [
        (5, 7, 3, 3, False, None),
        (7, 5, 4, 2, True, None),
        (11, 11, 6, 2, True, 3),
        (11, 11, 2, 1, False, (1, 2)),
        (1, 3, 2, 1, False, 1),
    ],
)
def test_dense_is_the_loop(
    length: int, keys: int, heads: int, groups: int, causal: bool, window: int | tuple[int, int] | None
) -> None:
    arrays = tensors(0, length, keys, heads, groups)
    expected = loop(*arrays, loop_mask(*in_order(length, keys), band(causal, window)))
    close(run(arrays, causal=causal, window=window, backend="dense"), expected)


@pytest.mark.parametrize("backend", ON_CPU)
def test_the_scale_is_an_argument(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 3)
    arrays = tensors(1, 5, 5, 2, 1)
    expected = loop(*arrays, loop_mask(*in_order(5, 5), (1, 1)), scale=0.7)
    close(run(arrays, window=1, scale=0.7, backend=backend), expected)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 3), (True, 3), (False, (2, 5))])
def test_jax_nn_has_the_same_window(
    causal: bool, window: int | tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, 4)
    q, k, v, _ = tensors(2, 13, 13, 4, 2)
    v = v[..., :K]  # its values are as wide as its keys
    theirs = jax.jit(lambda *x: jax.nn.dot_product_attention(*x, is_causal=causal, local_window_size=window))(q, k, v)
    for backend in ON_CPU if window is not None else ("dense", "blockwise", "strips"):
        ours = jax.jit(partial(attend, causal=causal, window=window, backend=backend))(q, k, v)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=backend)


# --- Banded


def held_to_the_loop(length: int, window: int | tuple[int, int], causal: bool, heads: int = 2, groups: int = 1) -> None:
    arrays = tensors(length, length, length, heads, groups)
    expected = loop(*arrays, loop_mask(*in_order(length, length), band(causal, window)))
    close(run(arrays, causal=causal, window=window, backend="banded"), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_banded_in_one_tile(window: int, causal: bool) -> None:
    held_to_the_loop(3, window, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 2, 3, 5, 8])
def test_banded_in_many_tiles(window: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of three queries: a band reaches from none to all of the neighbour tiles, in one slab or in two."""
    cut(monkeypatch, 3, 3)
    held_to_the_loop(7, window, causal)


# --- All of them, on anything


def packing(draw: Callable[..., Any], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments of B rows: padding before, segments 1, 2, ... whose positions restart, padding after.

    As batches have it, padding is at position 0 in segment 0.
    """
    positions, segments = np.zeros((B, length), np.int32), np.zeros((B, length), np.int32)
    for b in range(B):
        start = draw(st.integers(0, length // 3), label="padding before")
        for segment in itertools.count(1):
            size = min(draw(st.integers(0, length), label="tokens"), length - start)
            if size == 0:
                break
            segments[b, start : start + size] = segment
            positions[b, start : start + size] = np.arange(size)
            start += size
    return positions, segments


def anywhere(draw: Callable[..., Any], length: int, keys: int) -> Arrays:
    """Positions in any order and with gaps, and three segments (0 too) in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 99), label="seed of the places"))
    far = 2 * max(length, keys)
    places = [np.stack([rng.permutation(far)[:size] for _ in range(B)]).astype(np.int32) for size in (length, keys)]
    return (*places, *(rng.integers(0, 3, x.shape).astype(np.int32) for x in places))


# The scaled queries, the weights, the output, the scores' gradients and the results are rounded to eight bits each, by
# at most 2^-8 of themselves; sums are taken in float32. The largest error found was that of 2.5 roundings.
TOLERANCE = {"float32": 2e-5, "bfloat16": 8 * 2.0**-8}


def held_to_the_loop_anyhow(ids: str, data: st.DataObject) -> None:
    """In values and in all gradients. Tiles are tiny: some slabs are skipped, some seen wholly and some in part."""
    draw = data.draw
    lengths = st.sampled_from([29, 13, 37, 43, 11, 7, 5, 3, 2])
    length = draw(lengths, label="queries")
    keys = length if draw(st.booleans(), label="as many keys") else draw(lengths, label="keys")
    side = st.integers(0, 9) | st.integers(0, length + 1)
    window = draw(st.none() | side | st.tuples(side, side), label="window")
    causal = draw(st.booleans(), label="causal")
    groups = draw(st.integers(1, 3), label="groups")
    heads = groups * draw(st.integers(1, 3), label="heads of a group")
    dtype = draw(st.sampled_from(["float32", "bfloat16"]), label="dtype")
    table = jnp.asarray(np.random.default_rng(length).normal(size=(T5_BUCKETS, heads)), jnp.float32)
    biases = [None, AlibiBias(heads), T5Bias(table, causal=False), T5Bias(table, causal=True)]
    bias = biases[draw(st.integers(0, 3), label="bias: none, ALiBi, T5, causal T5")]
    largest, smallest = draw(st.sampled_from([3, 4, 5, 16]), label="LARGEST"), draw(st.integers(1, 5), label="SMALLEST")

    q, k, v, cotangent = tensors(length, length, keys, heads, groups, jnp.dtype(dtype))
    backends, where, real = ["dense", "blockwise"], in_order(length, keys), np.ones((B, length), bool)
    if None not in band(causal, window) and length == keys and ids != "anywhere":
        backends.append("banded")
    if bias is None:
        backends.append("strips")
    if ids == "packed":
        mine = packing(draw, length)
        theirs = mine if length == keys else packing(draw, keys)
        where, real = (mine[0], theirs[0], mine[1], theirs[1]), mine[1] > 0
        cotangent = cotangent * real[..., None, None].astype(cotangent.dtype)
    elif ids == "anywhere":
        where = anywhere(draw, length, keys)
    mask = loop_mask(*where, band(causal, window))
    expected = loop(q, k, v, cotangent, mask, **loop_bias(bias, *where[:2]))
    names = ("q_positions", "k_positions", "q_segments", "k_segments")
    given = {} if ids == "in order" else dict(zip(names, where, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, largest, smallest)
        for backend in backends:
            known = {"consecutive": True} if backend == "banded" else {}
            found = run((q, k, v, cotangent), given, bias, causal=causal, window=window, backend=backend, **known)
            assert all(np.isfinite(x).all() for x in found)
            if backend == "banded":  # what padding gives is nobody's
                found = (np.where(real[..., None, None], found[0], expected[0]), *found[1:])
            close(found, expected, TOLERANCE[dtype], backend)


@pytest.mark.parametrize("ids", ["packed", "anywhere"])
@settings(max_examples=3, phases=[Phase.generate])  # to shrink a failure would compile hundreds of programs
@given(st.data())
def test_every_backend_is_the_loop(ids: str, data: st.DataObject) -> None:
    held_to_the_loop_anyhow(ids, data)


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["in order", "packed", "anywhere"])
@settings(max_examples=12, phases=[Phase.generate])
@given(st.data())
def test_every_backend_is_the_loop_on_more(ids: str, data: st.DataObject) -> None:
    held_to_the_loop_anyhow(ids, data)


@pytest.mark.parametrize(
    ("backend", "length", "keys", "window"),
    [("blockwise", 521, 1031, None), ("blockwise", 1031, 1031, (70, 5)), ("banded", 1031, 1031, 100)],
)
def test_tiles_of_their_own_length_are_dense(backend: str, length: int, keys: int, window: Any) -> None:
    arrays = tensors(0, length, keys, 2, 1)
    bias = T5Bias(jnp.asarray(np.random.default_rng(0).normal(size=(T5_BUCKETS, 2)), jnp.float32), causal=False)
    expected = run(arrays, score=bias, window=window, backend="dense")
    # The table's gradient sums a million numbers.
    close(run(arrays, score=bias, window=window, backend=backend), expected, 1e-4)


def test_tiles_shrink_where_many_heads_would_fill_memory() -> None:
    found = {(batch, heads): blockwise_backend.largest_tile(batch, heads) for batch, heads in [(1, 1), (8, 8), (13, 5)]}
    assert found == {(1, 1): 512, (8, 8): 512, (13, 5): 256}
    assert blockwise_backend.largest_tile(256, 16) == 128


# --- What a query sees


@pytest.mark.parametrize("largest", [512, 4])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_query_that_sees_nothing_gives_zeros(backend: str, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 0 has queries of a segment that no key has; all of row 1 sees nothing."""
    cut(monkeypatch, largest, min(largest, 128))
    arrays = tensors(3, 19, 19, 2, 1)
    q_segments, k_segments = np.ones((2, B, 19), np.int32)
    q_segments[0, 4:9] = 8
    q_segments[1] = 9
    # A score of 1e4 would overflow an exponential that is masked too late.
    arrays = (arrays[0] * 1e2, arrays[1] * 1e2, *arrays[2:])
    where = {"q_segments": q_segments, "k_segments": k_segments}
    out, dq, dk, dv = run(arrays, where, window=3, backend=backend)
    blind = q_segments != 1
    assert (out[blind] == 0).all()
    assert (dq[blind] == 0).all()
    assert (dk[1] == 0).all()
    assert (dv[1] == 0).all()
    assert (out[~blind] != 0).all()
    assert all(np.isfinite(x).all() for x in (out, dq, dk, dv))


@pytest.mark.parametrize("backend", ON_CPU)
def test_scores_of_ten_thousand_do_not_overflow(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do scores of which the largest comes last, or first, or is far below zero."""
    cut(monkeypatch, 4, 4)
    q, k, v, cotangent = tensors(3, 19, 19, 2, 1)
    q[..., 0], k[..., 0] = 1e3, np.linspace(-20, 20, 19)[None, :, None]
    q[1, ..., 0] *= -1
    expected = loop(q, k, v, cotangent, loop_mask(*in_order(19, 19), (9, 9)))
    # A score of 1e4 has a rounding of 1e-3 in float32, and its weight with it.
    close(run((q, k, v, cotangent), window=9, backend=backend), expected, 3e-3)


@pytest.mark.parametrize("tiles_from", [10**9, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_any_positions_under_auto(causal: bool, tiles_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that a caller gives may be in any order, with gaps: "auto" must not cut the band by index."""
    cut(monkeypatch, 5)
    tune(monkeypatch, tiles_from=tiles_from)
    arrays = tensors(4, 43, 43, 2, 1)
    rng = np.random.default_rng(0)
    positions = np.stack([rng.permutation(86)[:43] for _ in range(B)]).astype(np.int32)
    assert choose(*arrays[:3], band(causal, 2)).backend == "banded"
    where = {"q_positions": positions, "k_positions": positions}
    ones = np.ones_like(positions)
    expected = loop(*arrays, loop_mask(positions, positions, ones, ones, band(causal, 2)))
    close(run(arrays, where, causal=causal, window=2), expected)


def test_one_row_of_positions_serves_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 3)
    arrays = tensors(5, 5, 5, 2, 1)
    places = np.arange(5, dtype=np.int32)[None]
    where = {"q_positions": places, "k_positions": places, "q_segments": places // 3, "k_segments": places // 3}
    every = {name: np.repeat(x, B, axis=0) for name, x in where.items()}
    expected = run(arrays, every, window=2, backend="dense")
    for backend in ON_CPU:
        close(run(arrays, where, window=2, backend=backend, consecutive=True), expected)


# --- How documents are told apart


@pytest.mark.parametrize("backend", ["auto", "dense", "blockwise", "strips"])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths_are_segments_of_padding(backend: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real queries of right-padded rows see the same, in values and gradients, however padding is told."""
    cut(monkeypatch, 3)
    q, k, v, cotangent = tensors(7, 11, 11, 4, 2)
    lengths = np.array([11, 4], np.int32)
    real = np.arange(11) < lengths[:, None]
    cotangent = cotangent * real[..., None, None]
    ids = real.astype(np.int32)
    expected = run((q, k, v, cotangent), {"q_segments": ids, "k_segments": ids}, causal=causal, backend="dense")
    found = run((q, k, v, cotangent), {"k_lengths": lengths}, causal=causal, backend=backend)
    assert np.isfinite(found[0]).all()
    close((found[0][real], *found[1:]), (expected[0][real], *expected[1:]))


def test_a_causal_row_needs_no_mask_of_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real query comes after padding. Nor is a mask made where every key is seen."""
    masked = []
    monkeypatch.setattr(masks, "visible", lambda *where: masked.append(where))
    q, k, v, _ = (jnp.asarray(x) for x in tensors(8, 5, 5, 2, 1))
    attend(q, k, v, backend="dense")
    assert not masked
    seen: list[masks.Visibility] = []
    monkeypatch.setitem(
        BACKENDS, "strips", lambda q, *_, where, **__: seen.append(where) or jnp.zeros((*q.shape[:3], M))
    )
    attend(q, k, v, causal=True, k_lengths=jnp.array([5, 2]))
    attend(q, k, v, k_lengths=jnp.array([5, 2]))
    assert [where.k_lengths is None for where in seen] == [True, False]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint32, bool])
@pytest.mark.parametrize("backend", ON_CPU)
def test_ids_of_every_type_mean_the_same(backend: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 3, 1)
    arrays = tensors(9, 7, 7, 2, 1)
    ids = np.array([[1, 1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 1, 1, 0]])
    where = {"q_segments": ids, "k_segments": ids}
    expected = loop(*arrays, loop_mask(*in_order(7, 7)[:2], ids, ids, (2, 2)))
    found = run(arrays, {name: x.astype(kind) for name, x in where.items()}, window=2, backend=backend)
    close(found, expected)


# --- What changes the scores


class Capped:
    """A bound method, whose cap is an array."""

    def __init__(self, cap: Any) -> None:
        self.cap = cap

    def change(self, scores: Any, q_positions: Any, k_positions: Any) -> Any:
        return self.cap * jnp.tanh(scores / self.cap)


def decayed(rate: Any, scores: Any, q_positions: Any, k_positions: Any) -> Any:
    """What is far counts less, by a rate for each head."""
    distance = jnp.abs(q_positions[..., None, :, None] - k_positions[..., None, None, :])
    return scores - rate[:, None, None] * distance


@pytest.mark.parametrize("backend", WITH_SCORES)
@pytest.mark.parametrize("form", ["closure", "partial", "bound method"])
def test_any_callable_changes_the_scores(backend: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients to the array that it closes over: dense differentiates itself, tiles do so by hand."""
    cut(monkeypatch, 3, 1)
    q, k, v, cotangent = (jnp.asarray(x) for x in tensors(10, 8, 8, 4, 2))
    where = {name: jnp.asarray([[0, 1, 2, 3, 4, 0, 1, 2]] * B) for name in ("q_positions", "k_positions")}
    where |= {name: jnp.asarray([[1, 1, 1, 1, 1, 2, 2, 2]] * B) for name in ("q_segments", "k_segments")}

    def make(array: Any) -> Any:
        if form == "bound method":
            return Capped(array[0]).change
        return partial(decayed, array) if form == "partial" else lambda *args: decayed(array, *args)

    def total(backend: str, q: Any, k: Any, v: Any, array: Any) -> Any:
        out = attend(q, k, v, window=3, consecutive=True, score=make(array), backend=backend, **where)
        return (out * cotangent).sum()

    array = jnp.asarray([0.7, 0.2, 0.9, 0.4])
    gradient = jax.jit(jax.value_and_grad(total, (1, 2, 3, 4)), static_argnums=0)
    value, found = gradient(backend, q, k, v, array)
    expected = jax.tree.map(np.asarray, gradient("dense", q, k, v, array))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for mine, theirs in zip(found, expected[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    step = 1e-2 * jnp.ones(4)  # and the gradient is a slope
    slope = (total("dense", q, k, v, array + step) - total("dense", q, k, v, array - step)) / 2
    np.testing.assert_allclose(found[3].sum() * 1e-2, slope, rtol=2e-3)


def test_forward_mode_through_dense() -> None:
    q, k, v, cotangent = (jnp.asarray(x) for x in tensors(11, 5, 5, 2, 1))
    f = partial(attend, causal=True, score=Capped(2.0).change, backend="dense")
    _, forward = jax.jvp(lambda q: f(q, k, v), (q,), (jnp.ones_like(q),))
    _, pull = jax.vjp(lambda q: f(q, k, v), q)
    np.testing.assert_allclose((forward * cotangent).sum(), pull(cotangent)[0].sum(), rtol=1e-5)


# --- Rows of one device decide


def test_what_a_device_computes_decides_not_the_whole_batch() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    assert platforms.device_rows(64) == 64
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert platforms.device_rows(64) == 8
        assert blockwise_backend.largest_tile(platforms.device_rows(32), 16) == 512
    assert blockwise_backend.largest_tile(platforms.device_rows(32), 16) == 128


def test_the_platform_is_the_one_that_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jax.ShapeDtypeStruct((1, 64, 2, 8), jnp.float32)
    monkeypatch.setitem(platforms.PLATFORMS, "tpu", dataclasses.replace(platforms.PLATFORMS["tpu"], tiles_from=1))
    assert choose(x, x, x, band(False, None)).backend == "strips"
    with platforms.compiling_for("tpu"):
        assert choose(x, x, x, band(False, None)).backend == "blockwise"


def test_a_gpu_that_has_no_kernel_says_why() -> None:
    x = jax.ShapeDtypeStruct((4, 1024, 8, 64), jnp.float32)
    with platforms.compiling_for("gpu"):
        found = choose(x, x, x, band(True, None))
    why = "no kernel of a GPU takes float32, and 1024 x 1024 scores a head are many"
    assert (found.backend, found.reason) == ("blockwise", why)


# --- What "auto" takes


@pytest.mark.parametrize(
    ("length", "keys", "causal", "window", "backend", "reason"),
    [
        (37, 37, False, 2, "strips", "37 x 37 scores a head are few"),
        (723, 725, False, None, "strips", "723 x 725 scores"),
        (724, 725, False, None, "blockwise", "724 x 725 scores a head are more than stay in a processor's cache"),
        (512, 1024, True, None, "blockwise", "512 x 1024 scores"),
        (1, 2**19, True, None, "blockwise", "1 x 524288 scores"),
        (1, 37, True, None, "dense", "1 x 37 scores"),
        # In two chunks, five strips of 30 queries see three blocks of keys: of 30, or of the halos' 10 or 30.
        (300, 300, False, 10, "banded", "the window's tiles hold 27% of the scores"),
        (300, 300, False, 30, "banded", "30% of the scores"),
        (300, 301, False, 10, "strips", "300 x 301 scores a head are few; 100% are computed"),
        # 32 strips see three blocks of 32 keys, the first of all and the last one less.
        (1024, 1024, False, 16, "banded", "9% of the scores"),
        (1024, 1024, False, 200, "banded", "53% of the scores"),
        (1024, 1024, True, 200, "banded", "33% of the scores"),
        (1024, 1024, False, 400, "blockwise", "1024 x 1024 scores"),
        # 32 strips of 128 queries see 17 blocks each: too many to unroll, so by tiles of 512.
        (16384, 16384, True, 2048, "banded", "16% of the scores"),
        (4096, 4096, False, 16, "banded", "the window's tiles hold 2% of the scores"),
        (2200, 2200, True, 200, "banded", "the window's tiles hold 16% of the scores"),
        (1024, 1025, False, 16, "blockwise", "1024 x 1025 scores"),
        (1024, 1024, False, 1024, "blockwise", "1024 x 1024 scores"),
    ],
)
def test_auto_takes_what_pays_and_says_why(
    length: int,
    keys: int,
    causal: bool,
    window: int | None,
    backend: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The band where it computes at most half of the scores, tiles where there are many, and all at once otherwise."""
    shapes = [(4, length, 8, 64), (4, keys, 2, 64), (4, keys, 2, 64)]
    q, k, v = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    found = choose(q, k, v, band(causal, window))
    assert found.backend == backend
    assert reason in found.reason
    elsewhere = choose(q, k, v, band(causal, window), consecutive=False)
    assert elsewhere.backend != "banded"
    assert elsewhere.reason


# --- Cost


class Slabs:
    """What one forward and one backward pass of `attend` computed when it ran: its slabs, those of them that it
    masked, and their scores; half of each, since both passes compute the same.

    The compiler counts the body of a loop once and both sides of a branch, so a score function and the mask count
    instead.
    """

    def __init__(self, length: int, **options: Any) -> None:
        self.computed, self.masked, self.scores = 0, 0, 0
        visible = masks.visible

        def score(scores: Any, q_positions: Any, k_positions: Any) -> Any:
            number = q_positions.shape[-1] * k_positions.shape[-1]
            jax.debug.callback(lambda: self.count(computed=0.5, scores=number / 2))
            return scores

        def counted(*where: Any) -> Any:
            jax.debug.callback(lambda: self.count(masked=0.5))
            return visible(*where)

        x = np.random.default_rng(0).normal(size=(1, length, 1, 8)).astype(np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masks, "visible", counted)
            program = jax.jit(jax.grad(self.squares), static_argnames=options)
            jax.block_until_ready(program(x, jax.tree_util.Partial(score), **options))
        jax.effects_barrier()

    @staticmethod
    def squares(x: Any, score: Any, **options: Any) -> Any:
        return (attend(x, x, x, score=score, **options) ** 2).sum()

    def count(self, **more: float) -> None:
        for name, number in more.items():
            setattr(self, name, getattr(self, name) + number)


@pytest.mark.parametrize(
    ("causal", "window"), [(False, None), (True, None), (False, 4), (False, 5), (True, 9), (False, (0, 1))]
)
def test_slabs_that_nobody_sees_are_skipped_and_those_seen_wholly_are_not_masked(
    causal: bool, window: int | tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, 4)
    found = Slabs(20, causal=causal, window=window, backend="blockwise")
    mask = loop_mask(*in_order(20, 20), band(causal, window))[0].reshape(5, 4, 5, 4)
    some, every = mask.any(axis=(1, 3)), mask.all(axis=(1, 3))
    assert (found.computed, found.masked) == (some.sum(), (some & ~every).sum())


@pytest.mark.parametrize(("backend", "window"), [("blockwise", None), ("blockwise", 5), ("banded", 1)])
def test_what_no_query_may_see_is_never_touched(backend: str, window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab of another segment is skipped: not even a NaN in it is multiplied by a weight of zero."""
    cut(monkeypatch, 4, 4)
    q, k, v, cotangent = tensors(6, 16, 16, 2, 1)
    q_segments, k_segments = np.ones((2, B, 16), np.int32)
    # Slabs are keys 4 to 7 of blocks, and 3 to 8 of the band.
    k_segments[:, 3:9] = 7
    where = {"q_segments": q_segments, "k_segments": k_segments}
    expected = loop(q, k, v, cotangent, loop_mask(*in_order(16, 16)[:2], q_segments, k_segments, (window, window)))
    k[:, 5:7], v[:, 5:7] = np.nan, np.nan
    close(run((q, k, v, cotangent), where, window=window, backend=backend), expected)


def test_a_window_costs_in_proportion_to_the_length() -> None:
    """Forward and backward: twice the length is twice the scores, and four times without a window."""
    banded = [Slabs(length, window=8, backend="banded").scores for length in (509, 1021)]
    full = [Slabs(length, backend="blockwise").scores for length in (509, 1021)]
    assert banded[1] / banded[0] == pytest.approx(2, rel=0.05)
    assert full[1] / full[0] == pytest.approx(4, rel=0.05)
    # Tiles of 128 queries meet 144 keys each; the others meet all.
    assert banded[1] / full[1] == pytest.approx(144 / 1021, rel=0.05)


def test_a_band_that_auto_takes_computes_at_most_half() -> None:
    x = jax.ShapeDtypeStruct((1, 3000, 1, 8), jnp.float32)
    assert choose(x, x, x, band(False, 10), padding="segments").backend == "banded"
    assert Slabs(3000, window=10, backend="banded").scores <= 3000**2 / 2


@pytest.mark.parametrize(
    ("backend", "options", "trained", "growth"),
    [
        ("dense", {}, False, 4),
        ("blockwise", {}, False, 2),
        ("blockwise", {"causal": True}, True, 2),
        ("banded", {"window": 8}, False, 2),
    ],
)
def test_memory_grows_with_the_length_and_not_with_its_square(
    backend: str, options: dict[str, Any], trained: bool, growth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the compiler, forward and backward: twice the length takes at most `growth` times the memory."""
    cut(monkeypatch, 32, 32)

    def kept(length: int) -> int:
        def total(q: Any, k: Any, v: Any, table: Any) -> Any:
            score = T5Bias(table, causal=True) if trained else None
            return (attend(q, k, v, score=score, backend=backend, **options) ** 2).sum()

        shapes = [(1, length, 2, 8)] * 3 + [(T5_BUCKETS, 2)]
        arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        program = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(*arrays).compile()
        return program.memory_analysis().temp_size_in_bytes

    short, long = (kept(length) for length in (512, 1024))
    assert long / short < 1.15 * growth
    # The scores of one head alone are 4 MiB.
    assert (long > 2**22) == (backend == "dense")


# --- Bad input


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the tests' own check of signatures, as it runs for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": (B, 5, 2, K + 1)}, "do not fit"),
        ({"k": (B + 1, 5, 2, K)}, "do not fit"),
        ({"v": (B, 6, 2, M)}, "do not fit"),
        ({"v": (B, 5, 1, M)}, "do not fit"),
        ({"k": (B, 5, 3, K), "v": (B, 5, 3, M)}, "3 key/value heads do not divide 4 query heads"),
        ({"window": -1}, "window=-1 is negative"),
        ({"window": (2, -3)}, "negative"),
        (
            {"backend": "flash"},
            "no attention backend 'flash': choose 'auto' or one of " + re.escape(str(sorted(BACKENDS))),
        ),
        ({"backend": "banded"}, "needs a window on both sides: use backend='blockwise'"),
        ({"backend": "banded", "causal": True}, "needs a window on both sides"),
        (
            {"backend": "banded", "window": 2, "k": (B, 7, 2, K), "v": (B, 7, 2, M)},
            "as many keys as queries, not 7 and 5: use backend='blockwise'",
        ),
        ({"q_segments": np.ones((B, 5), int)}, "together"),
        ({"k_segments": np.ones((B, 5), int)}, "together"),
        ({"q_positions": np.ones((B, 4), int)}, r"q_positions has shape \(2, 4\), not \(2, 5\)"),
        ({"k_positions": np.ones((3, 5), int)}, "k_positions has shape"),
        ({"q_positions": np.arange(5)}, "q_positions has shape"),
        ({name: np.ones((B, 5)) for name in ("q_segments", "k_segments")}, "type float.*: give whole numbers"),
        ({"k_lengths": np.ones(3, int)}, r"k_lengths has shape \(3,\), not \(2,\)"),
        (
            {"k_lengths": np.ones(2, int)} | {name: np.ones((B, 5), int) for name in ("q_segments", "k_segments")},
            "both say what is padding",
        ),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    shapes = {"q": (B, 5, 4, K), "k": (B, 5, 2, K), "v": (B, 5, 2, M)}
    shapes |= {name: changes[name] for name in shapes.keys() & changes.keys()}
    options = {name: value for name, value in changes.items() if name not in shapes}
    with pytest.raises(ValueError, match=message) as caught:
        attend(*(jnp.zeros(shape) for shape in shapes.values()), **options)
    assert "\n" not in str(caught.value)


ALIGNED = np.arange(5)[None]


@pytest.mark.parametrize(
    "where",
    [
        {"q_positions": ALIGNED[:, ::-1], "k_positions": ALIGNED[:, ::-1]},
        {"q_positions": 2 * ALIGNED, "k_positions": 2 * ALIGNED},
        {"k_positions": ALIGNED // 2},
        # Each side grows by one, but the sides do not run beside each other.
        {"q_positions": ALIGNED + 3},
        {"q_positions": ALIGNED, "k_positions": ALIGNED + 1},
        # A segment that comes back goes on with its positions, but not with its places.
        {name: np.array([[0, 1, 0, 1, 2]]) for name in ("q_positions", "k_positions")}
        | {name: np.array([[1, 1, 2, 2, 1]]) for name in ("q_segments", "k_segments")},
    ],
)
def test_banded_refuses_positions_that_do_not_follow_the_index(where: dict[str, Any]) -> None:
    x = jnp.ones((B, 5, 1, K))
    where = {name: jnp.asarray(array) for name, array in where.items()}
    with pytest.raises(ValueError, match=r"one inside a segment.*use backend='blockwise'"):
        attend(x, x, x, window=1, backend="banded", **where)


def test_banded_takes_positions_that_restart_and_padding_of_any_position() -> None:
    x = jnp.ones((B, 5, 1, K))
    positions, segments = jnp.array([[7, 8, 0, 1, 0]] * B), jnp.array([[1, 1, 2, 2, 0]] * B)
    where = {"q_positions": positions, "k_positions": positions, "q_segments": segments, "k_segments": segments}
    assert jax.eval_shape(lambda x: attend(x, x, x, window=1, backend="banded", **where), x).shape == x.shape
