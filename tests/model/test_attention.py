"""Every backend against a float64 loop, in values and gradients; bad input; and what a window costs."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.model.attention import BACKENDS, attend, choose
from transformer.model.masks import band

B, K, M = 2, 5, 7
# The module: `transformer.model.attention.banded` as an attribute is the function of that name.
banded_backend = importlib.import_module("transformer.model.attention.banded")
# These programs are tiny and compiled once: optimising their machine code takes longer than running it.
QUICK = {"xla_backend_optimization_level": 0}
Arrays = tuple[np.ndarray, ...]


def tensors(seed: int, length: int, keys: int, heads: int, groups: int) -> Arrays:
    """q, k, v, and a cotangent of the output, as float32."""
    rng = np.random.default_rng(seed)
    shapes = ((B, length, heads, K), (B, keys, groups, K), (B, keys, groups, M), (B, length, heads, M))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


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


def loop(q: Any, k: Any, v: Any, cotangent: Any, mask: np.ndarray, scale: float = K**-0.5) -> Arrays:
    """Output and gradients with respect to q, k and v: one query at a time, in float64, by the derivative on paper."""
    q, k, v, cotangent = (x.astype(np.float64) for x in (q, k, v, cotangent))
    out, dq, dk, dv = np.zeros_like(cotangent), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, i, h in itertools.product(range(B), range(q.shape[1]), range(q.shape[2])):
        seen, g = np.flatnonzero(mask[b, i]), h // (q.shape[2] // k.shape[2])
        if not seen.size:
            continue
        keys, values, given_back = k[b, seen, g], v[b, seen, g], cotangent[b, i, h]
        p = np.exp(scale * keys @ q[b, i, h])
        p /= p.sum()
        out[b, i, h] = p @ values
        ds = p * (values @ given_back - given_back @ out[b, i, h])
        dq[b, i, h] = scale * ds @ keys
        dk[b, seen, g] += scale * np.outer(ds, q[b, i, h])
        dv[b, seen, g] += np.outer(p, given_back)
    return out, dq, dk, dv


def run(arrays: Arrays, where: dict[str, Any] | None = None, **options: Any) -> Arrays:
    """Output and gradients of `attend`, compiled; `where` holds positions and segments."""

    def both(q: Any, k: Any, v: Any, cotangent: Any, where: dict[str, Any]) -> Any:
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, **where, **options), q, k, v)
        return out, *pull(cotangent)

    where = jax.tree.map(jnp.asarray, where or {})
    return jax.device_get(jax.jit(both, compiler_options=QUICK)(*map(jnp.asarray, arrays), where))


def close(found: Arrays, expected: Arrays, tolerance: float = 2e-5) -> None:
    for name, x, y in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance, err_msg=name)


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scale_is_an_argument(backend: str) -> None:
    arrays = tensors(1, 5, 5, 2, 1)
    expected = loop(*arrays, loop_mask(*in_order(5, 5), (1, 1)), scale=0.7)
    close(run(arrays, window=1, scale=0.7, backend=backend), expected)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 3), (True, 3), (False, (2, 5))])
def test_jax_nn_has_the_same_window(causal: bool, window: int | tuple[int, int] | None) -> None:
    q, k, v, _ = tensors(2, 13, 13, 4, 2)
    v = v[..., :K]  # its values are as wide as its keys
    theirs = jax.jit(
        lambda *x: jax.nn.dot_product_attention(*x, is_causal=causal, local_window_size=window), compiler_options=QUICK
    )(q, k, v)
    for backend in BACKENDS if window is not None else ("dense",):
        ours = run((q, k, v, v.repeat(2, axis=2)), causal=causal, window=window, backend=backend)[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=backend)


# --- Banded


def held_to_the_loop(length: int, window: int | tuple[int, int], causal: bool, heads: int = 2, groups: int = 1) -> None:
    arrays = tensors(length, length, length, heads, groups)
    expected = loop(*arrays, loop_mask(*in_order(length, length), band(causal, window)))
    close(run(arrays, causal=causal, window=window, backend="banded"), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", range(5))
def test_banded_at_every_window_of_one_block(window: int, causal: bool) -> None:
    held_to_the_loop(3, window, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", range(9))
def test_banded_at_every_window_of_many_blocks(window: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three queries: a band reaches from none to all of the neighbour blocks."""
    monkeypatch.setattr(banded_backend, "block_length", lambda length, left, right: 3)
    held_to_the_loop(7, window, causal)


@pytest.mark.parametrize(
    ("length", "window", "causal"),
    [(2, 3, False), (37, 1, False), (37, 16, True), (37, 17, False), (41, 38, True), (37, (0, 5), False)],
)
def test_banded_in_blocks_of_its_own_choice(length: int, window: int | tuple[int, int], causal: bool) -> None:
    held_to_the_loop(length, window, causal, heads=4, groups=2)


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


def held_to_the_loop_on_packed_rows(
    rows: tuple[np.ndarray, np.ndarray], window: Any, causal: bool, heads: int, groups: int, backend: str
) -> None:
    positions, segments = rows
    length, real = positions.shape[1], segments > 0
    q, k, v, cotangent = tensors(length, length, length, heads, groups)
    cotangent = cotangent * real[..., None, None]
    mask = loop_mask(positions, positions, segments, segments, band(causal, window))
    expected = loop(q, k, v, cotangent, mask & real[..., None])
    where = {"q_positions": positions, "k_positions": positions, "q_segments": segments, "k_segments": segments}
    found = run((q, k, v, cotangent), where, causal=causal, window=window, backend=backend)
    assert all(np.isfinite(x).all() for x in found)
    # What padding gives is nobody's, but it must not reach the gradients.
    close((found[0] * real[..., None, None], *found[1:]), expected)


@settings(max_examples=8)
@given(st.data())
def test_banded_on_packed_and_padded_rows(data: st.DataObject) -> None:
    length = data.draw(st.sampled_from([2, 3, 11, 23, 29, 37, 43]), label="length")
    groups = data.draw(st.integers(1, 2), label="groups")
    heads = groups * data.draw(st.integers(1, 2), label="heads of a group")
    side = st.integers(0, length + 1)
    window = data.draw(st.integers(0, min(length, 9)) | side | st.tuples(side, side), label="window")
    causal = data.draw(st.booleans(), label="causal")
    held_to_the_loop_on_packed_rows(packing(data.draw, length), window, causal, heads, groups, "banded")


@pytest.mark.parametrize(("causal", "window"), [(False, 2), (True, None)])
def test_dense_on_packed_and_padded_rows(causal: bool, window: int | None) -> None:
    segments = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 0], [1, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0]])
    positions = np.array([[0, 0, 0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0]])
    held_to_the_loop_on_packed_rows((positions, segments), window, causal, 4, 2, "dense")


# --- What a query sees


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_sees_nothing_gives_zeros(backend: str) -> None:
    """Row 0 has queries of a segment that no key has; all of row 1 sees nothing."""
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


@pytest.mark.parametrize("causal", [False, True])
def test_any_positions_under_auto(causal: bool) -> None:
    """Positions that a caller gives may be in any order, with gaps: "auto" must not cut the band by index."""
    arrays = tensors(4, 43, 43, 2, 1)
    rng = np.random.default_rng(0)
    positions = np.stack([rng.permutation(86)[:43] for _ in range(B)]).astype(np.int32)
    assert choose(43, 43, band(causal, 2), explicit_positions=False) == "banded"
    where = {"q_positions": positions, "k_positions": positions}
    ones = np.ones_like(positions)
    expected = loop(*arrays, loop_mask(positions, positions, ones, ones, band(causal, 2)))
    close(run(arrays, where, causal=causal, window=2), expected)


def test_one_row_of_positions_serves_all_rows() -> None:
    arrays = tensors(5, 5, 5, 2, 1)
    places = np.arange(5, dtype=np.int32)[None]
    where = {"q_positions": places, "k_positions": places, "q_segments": places // 3, "k_segments": places // 3}
    every = {name: np.repeat(x, B, axis=0) for name, x in where.items()}
    expected = run(arrays, every, window=2, backend="dense")
    for backend in BACKENDS:
        close(run(arrays, where, window=2, backend=backend), expected)


@pytest.mark.parametrize(("length", "window"), [(37, 2), (43, 2), (512, 16), (512, 200), (64, 64)])
def test_auto_takes_the_band_where_it_pays(length: int, window: int) -> None:
    """It computes fewer than half of the scores, and where it is not taken it would compute half or more."""
    limits = (window, window)
    computed = banded_backend.block_length(length, *limits) + 2 * window
    taken = choose(length, length, limits, explicit_positions=False)
    assert taken == ("banded" if computed < length / 2 else "dense")
    assert choose(length, length, limits, explicit_positions=True) == "dense"
    assert choose(length, length + 1, limits, explicit_positions=False) == "dense"
    assert choose(length, length, (None, None), explicit_positions=False) == "dense"
    assert choose(length, length, (None, 0), explicit_positions=False) == "dense"


# --- Cost


def flops(length: int, backend: str) -> float:
    def gradients(q: Any, k: Any, v: Any) -> Any:
        return jax.grad(lambda *x: (attend(*x, window=8, backend=backend) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    return jax.jit(gradients).lower(shape, shape, shape).compile(QUICK).cost_analysis()["flops"]


def test_a_window_costs_in_proportion_to_the_length() -> None:
    """Counted by the compiler, forward and backward: twice the length is twice the work, and four times when dense."""
    banded = [flops(length, "banded") for length in (509, 1021)]
    dense = [flops(length, "dense") for length in (509, 1021)]
    assert banded[1] / banded[0] == pytest.approx(2, rel=0.05)
    assert dense[1] / dense[0] == pytest.approx(4, rel=0.05)
    # Blocks of 16 queries meet 32 keys each; dense queries meet all.
    assert banded[1] / dense[1] < 1.5 * 32 / 1021


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
        ({"backend": "flash"}, r"no attention backend 'flash': choose 'auto' or one of \['banded', 'dense'\]"),
        ({"backend": "banded"}, "needs a window on both sides: use backend='dense'"),
        ({"backend": "banded", "causal": True}, "needs a window on both sides"),
        ({"backend": "banded", "window": 2, "k": (B, 7, 2, K), "v": (B, 7, 2, M)}, "as many keys as queries"),
        ({"q_segments": np.ones((B, 5), int)}, "together"),
        ({"k_segments": np.ones((B, 5), int)}, "together"),
        ({"q_positions": np.ones((B, 4), int)}, r"q_positions has shape \(2, 4\), not \(2, 5\)"),
        ({"k_positions": np.ones((3, 5), int)}, "k_positions has shape"),
        ({"q_positions": np.arange(5)}, "q_positions has shape"),
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
    with pytest.raises(ValueError, match=r"one inside a segment.*use backend='dense'"):
        attend(x, x, x, window=1, backend="banded", **where)


def test_banded_takes_positions_that_restart_and_padding_of_any_position() -> None:
    x = jnp.ones((B, 5, 1, K))
    positions, segments = jnp.array([[7, 8, 0, 1, 0]] * B), jnp.array([[1, 1, 2, 2, 0]] * B)
    where = {"q_positions": positions, "k_positions": positions, "q_segments": segments, "k_segments": segments}
    assert jax.eval_shape(lambda x: attend(x, x, x, window=1, backend="banded", **where), x).shape == x.shape
