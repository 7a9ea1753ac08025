"""Attention over a length that is split over devices: a ring and a halo against the float64 loop, in values and
gradients, and what each of them sends."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.model.test_attention import Arrays, B, anywhere, close, cut, in_order, loop, loop_bias, loop_mask, tensors
from transformer.accelerators.program import collectives
from transformer.model.attention import attend, noted_choices
from transformer.model.masks import band
from transformer.model.positions import T5_BUCKETS, AlibiBias, T5Bias

Axes = dict[str, int]
RING = {"sequence": 4}
GRID = {"data": 2, "sequence": 2, "tensor": 2}


def mesh_of(axes: Axes) -> Any:
    sizes = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1} | axes
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 4, devices=devices)


def program(axes: Axes, **options: Any) -> Any:
    """Output and gradients of `attend` on a mesh, the score function's among them."""
    mesh = mesh_of(axes)

    def both(q: Any, k: Any, v: Any, cotangent: Any, where: dict[str, Any], score: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            out, pull = jax.vjp(lambda q, k, v, score: attend(q, k, v, score=score, **where, **options), q, k, v, score)
            return out, *jax.tree.leaves(pull(cotangent))

    split = jax.NamedSharding(mesh, jax.P(None, "sequence"))
    return jax.jit(both, in_shardings=(*[split] * 4, None, None))


def run(axes: Axes, arrays: Arrays, where: dict[str, Any] | None = None, score: Any = None, **options: Any) -> Arrays:
    return jax.device_get(program(axes, **options)(*arrays, where or {}, score))


def packing(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments of B rows: documents whose borders are not those of the devices, then padding."""
    rng = np.random.default_rng(seed)
    positions, segments = np.zeros((B, length), np.int32), np.zeros((B, length), np.int32)
    for b in range(B):
        borders = [0, *sorted(rng.choice(np.arange(1, length), 3, replace=False))]
        for segment, (start, end) in enumerate(itertools.pairwise(borders), 1):
            segments[b, start:end], positions[b, start:end] = segment, np.arange(end - start)
    return positions, segments


NAMES = ("q_positions", "k_positions", "q_segments", "k_segments")


@pytest.mark.parametrize("packed", [False, True], ids=["in order", "packed"])
@pytest.mark.parametrize(
    ("axes", "window", "causal", "heads", "groups", "kind"),
    [
        (RING, None, False, 3, 3, "ring"),
        (RING, None, True, 4, 2, "ring"),
        ({"sequence": 8}, None, True, 2, 1, "ring"),
        (GRID, None, False, 4, 2, "ring"),
        (GRID, None, True, 6, 3, "ring"),  # key heads that do not divide over the devices
        (RING, 0, False, 2, 1, "halo"),
        (RING, 3, True, 2, 1, "halo"),
        (RING, (1, 4), False, 4, 2, "halo"),
        (RING, 9, True, 2, 2, "halo"),  # from two neighbours
        (RING, 30, True, 2, 2, "ring"),  # as much as all keys
        (GRID, (2, 1), False, 6, 3, "halo"),
    ],
)
def test_split_over_devices_it_is_the_loop(
    axes: Axes, window: Any, causal: bool, heads: int, groups: int, kind: str, packed: bool
) -> None:
    """Each device has an odd number of positions."""
    length = 5 * axes["sequence"]
    q, k, v, cotangent = tensors(length, length, length, heads, groups)
    places, given, known = in_order(length, length), {}, {}
    if packed:
        positions, segments = packing(length)
        places, known = (positions, positions, segments, segments), {"consecutive": True}
        given = dict(zip(NAMES, places, strict=True))
        cotangent = cotangent * (segments > 0)[..., None, None]
    expected = loop(q, k, v, cotangent, loop_mask(*places, band(causal, window)))
    with noted_choices() as choices:
        found = run(axes, (q, k, v, cotangent), given, causal=causal, window=window, **known)
    assert choices[0].backend == kind
    real = (places[2] > 0)[..., None, None]
    close((np.where(real, found[0], expected[0]), *found[1:]), expected)


@pytest.mark.parametrize("axes", [{"sequence": 3}, {"fsdp": 2, "sequence": 3}])
def test_other_keys_than_queries(axes: Axes) -> None:
    """Cross-attention over right-padded keys."""
    q, k, v, cotangent = tensors(0, 15, 21, 4, 2)
    lengths = np.array([13, 0], np.int32)
    seen = (np.arange(21) < lengths[:, None]).astype(np.int32)
    places = (*in_order(15, 21)[:3], seen)
    found = run(axes, (q, k, v, cotangent), {"k_lengths": lengths})
    close(found, loop(q, k, v, cotangent, loop_mask(*places, (None, None))))
    assert (found[0][1] == 0).all()  # a query that sees nothing


@pytest.mark.parametrize("axes", [RING, GRID])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ["ALiBi", "T5"])
def test_scores_change_by_position_and_their_weights_have_gradients(axes: Axes, window: Any, name: str) -> None:
    length, heads = 5 * axes["sequence"], 4
    table = jnp.asarray(np.random.default_rng(1).normal(size=(T5_BUCKETS, heads)), jnp.float32)
    bias = AlibiBias(heads) if name == "ALiBi" else T5Bias(table, causal=True)
    arrays, places = tensors(1, length, length, heads, 2), in_order(length, length)
    expected = loop(*arrays, loop_mask(*places, band(True, window)), scale=0.7, **loop_bias(bias, *places[:2]))
    close(run(axes, arrays, score=bias, causal=True, window=window, scale=0.7), expected)


@pytest.mark.parametrize("window", [None, 3])
def test_a_function_that_closes_over_what_is_traced_has_gradients_too(window: Any) -> None:
    q, k, v, cotangent = (jnp.asarray(x) for x in tensors(2, 20, 20, 2, 1))

    def out(cap: Any, mesh: Any) -> Any:
        score = lambda scores, q_positions, k_positions: cap * jnp.tanh(scores / cap)  # noqa: E731
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return (attend(q, k, v, window=window, score=score) * cotangent).sum()

    alone, split = (
        jax.jit(jax.value_and_grad(partial(out, mesh=x)), in_shardings=jax.NamedSharding(x, jax.P()))(2.0)
        for x in (mesh_of({"data": 1}), mesh_of(RING))
    )
    np.testing.assert_allclose(split, alone, rtol=2e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_positions_in_any_order_go_round_the_ring(window: Any) -> None:
    class Drawn:
        def draw(self, *_: Any, **__: Any) -> int:
            return 3

    arrays, places = tensors(3, 20, 20, 2, 1), anywhere(Drawn().draw, 20, 20)
    expected = loop(*arrays, loop_mask(*places, band(False, window)))
    with noted_choices() as choices:
        found = run(RING, arrays, dict(zip(NAMES, places, strict=True)), window=window)
    assert [choice.backend for choice in choices] == ["ring"]
    close(found, expected)


def test_slabs_of_a_visiting_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 37 keys is cut into three slabs, of which the last is part padding."""
    cut(monkeypatch, 16)
    monkeypatch.setattr("transformer.model.attention.ring.tile_length", lambda keys, most: 16)
    arrays = tensors(4, 74, 74, 2, 1)
    expected = loop(*arrays, loop_mask(*in_order(74, 74), band(False, None)))
    close(run({"sequence": 2}, arrays), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("window", [None, 3])
def test_what_a_query_does_not_see_has_no_influence(window: Any, bad: float) -> None:
    """Keys of the second document, on three devices of four; the first document's queries do not see them."""
    q, k, v, cotangent = tensors(5, 20, 20, 2, 1)
    segments = np.repeat([[1] * 7 + [2] * 13], B, axis=0).astype(np.int32)
    cotangent[:, 7:] = 0
    given = {"q_segments": segments, "k_segments": segments}
    expected = run(RING, (q, k, v, cotangent), given, window=window, causal=True)
    k[:, 9], v[:, 15] = bad, bad
    found = run(RING, (q, k, v, cotangent), given, window=window, causal=True)
    np.testing.assert_array_equal(found[0][:, :7], expected[0][:, :7])
    for x, y in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("window", [None, 3])
def test_a_query_that_sees_nan_gives_nan_and_no_gradient(window: Any) -> None:
    """A key on the second device; its neighbours' queries are lost, and no others, as on one device."""
    q, k, v, cotangent = tensors(6, 20, 20, 2, 1)
    v[0, 9, 0, 1] = np.nan
    alone, split = (run(axes, (q, k, v, cotangent), window=window, causal=True) for axes in ({"data": 1}, RING))
    assert np.isnan(split[0][0, 9:13]).all()
    assert np.isfinite(split[0][1]).all()
    assert all(np.isfinite(x).all() for x in split[1:])
    for x, y in zip(split, alone, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_bfloat16_goes_round_in_bfloat16() -> None:
    arrays = tensors(7, 20, 20, 4, 2, jnp.bfloat16)
    expected = loop(*arrays, loop_mask(*in_order(20, 20), band(True, None)))
    close(run(RING, arrays, causal=True), expected, 8 * 2.0**-8)


def test_a_length_that_does_not_divide_is_an_error() -> None:
    q, k, v, _ = (jnp.asarray(x) for x in tensors(0, 7, 8, 2, 1))
    with (
        jax.sharding.use_abstract_mesh(mesh_of(RING).abstract_mesh),
        pytest.raises(ValueError, match="7 queries and 8 keys do not divide over 4 devices"),
    ):
        attend(q, k, v)


# --- What is sent


def sent(length: int, window: Any) -> float:
    """Bytes that a device sends, forward and backward."""
    arrays = tensors(0, length, length, 2, 1)
    text = program({"sequence": 4}, causal=True, window=window).lower(*arrays, {}, None).compile().as_text()
    found = collectives(text, 4)
    assert {one.kind for one in found} == {"collective-permute"}
    return sum(one.sent_bytes for one in found)


def test_a_halo_is_as_large_as_the_window_whatever_the_length() -> None:
    # Keys and values of 5 and 7 numbers, forward and backward, and the segments and positions of one row; where a
    # device's part is long enough for `windows`, which goes by index, positions are not sent.
    assert sent(64, 6) == 4 * 6 * (2 * B * (5 + 7) + 2)
    assert sent(256, 6) == sent(1024, 6) == 4 * 6 * (2 * B * (5 + 7) + 1)
    assert sent(256, 12) == 2 * sent(256, 6)


def test_a_ring_sends_in_proportion_to_the_length() -> None:
    assert sent(256, None) == 4 * sent(64, None) > 10 * sent(64, 6)
