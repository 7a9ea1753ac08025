"""Which kernel takes a call, and what it is given. XLA stands in for cuDNN; the kernel of TPUs is interpreted."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.model.attention import attend, choose
from transformer.model.masks import band
from transformer.model.positions import AlibiBias
from transformer.platforms import compiling_for

fused = importlib.import_module("transformer.model.attention.fused")


def arrays(dtype: Any = jnp.float32, keys: int = 16, width: int = 8) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = ((2, 16, 4, 8), (2, keys, 2, 8), (2, keys, 2, width))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.fixture
def gpu() -> Any:
    with compiling_for("gpu"):
        yield


CASES: list[tuple[dict[str, Any], str | None]] = [
    ({}, "cudnn"),
    ({"causal": True}, "cudnn"),
    ({"causal": True, "window": 3}, "cudnn"),
    ({"causal": True, "window": (3, 9)}, "cudnn"),  # causal: nothing is ahead
    ({"window": 3}, None),  # tiles of a narrow window are cheaper than all scores
    ({"window": 7}, "cudnn_masked"),
    ({"window": (3, 0)}, "cudnn"),  # the same as causal
    ({"dtype": jnp.float32}, None),
    ({"dtype": jnp.float16}, "cudnn"),
    ({"width": 4}, None),
    ({"keys": 12}, "cudnn"),
    ({"keys": 13}, None),  # forward alone it would take an odd number
    ({"keys": 12, "causal": True}, "cudnn_masked"),
    ({"keys": 13, "causal": True}, None),
    ({"score": AlibiBias(4)}, None),
    ({"padding": "segments"}, "cudnn_masked"),
    ({"padding": "segments", "causal": True}, "cudnn_masked"),
    ({"padding": "lengths"}, "cudnn"),
    ({"consecutive": False}, "cudnn"),  # every query sees every key, whatever its position
    ({"consecutive": False, "causal": True}, "cudnn_masked"),
]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("changes", "taken"), CASES)
def test_cudnn_takes_what_it_can(changes: dict[str, Any], taken: str | None) -> None:
    changes = dict(changes)
    shape = {name: changes.pop(name) for name in ("keys", "width") if name in changes}
    limits = band(changes.pop("causal", False), changes.pop("window", None))
    q, k, v = arrays(changes.pop("dtype", jnp.bfloat16), **shape)
    choice = choose(q, k, v, limits, **changes)
    assert (choice.backend == "fused") == (taken is not None)
    assert taken is None or choice.reason.startswith(f"{taken}: ")


@pytest.mark.usefixtures("gpu")
def test_a_mask_that_is_too_large_goes_to_tiles() -> None:
    q = jax.ShapeDtypeStruct((32, 8192, 4, 64), jnp.bfloat16)
    choice = choose(q, q, q, band(True, None), padding="segments")
    assert choice.backend == "blockwise"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 3}, {"window": (5, 0)}])
def test_cudnn_is_asked_for_the_same_attention(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stand_in(*args: Any, implementation: str, **more: Any) -> jax.Array:
        asked.append(implementation)
        return theirs(*args, implementation="xla", **more)

    theirs = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", functools.wraps(theirs)(stand_in))
    q, k, v = arrays(jnp.bfloat16)
    found = attend(q, k, v, backend="fused", **options).astype(jnp.float32)
    expected = attend(q, k, v, backend="dense", **options).astype(jnp.float32)
    assert asked == ["cudnn"]
    np.testing.assert_allclose(found, expected, atol=0.02)  # a bfloat16 has 8 bits


SEGMENTS = np.repeat([1, 2, 0], [8, 5, 3])[None].repeat(2, axis=0)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 7}])
def test_packed_rows_are_a_mask_for_cudnn(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients; a marked key of another document has no influence."""
    theirs, asked = jax.nn.dot_product_attention, []

    def stand_in(*args: Any, implementation: str, **more: Any) -> jax.Array:
        asked.append(implementation)
        return theirs(*args, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", functools.wraps(theirs)(stand_in))
    q, k, v = arrays(jnp.bfloat16)
    k, ids = k.at[1, 2].set(jnp.nan), jnp.asarray(SEGMENTS)

    def run(backend: str, *qkv: jax.Array) -> jax.Array:
        return attend(*qkv, q_segments=ids, k_segments=ids, backend=backend, **options).astype(jnp.float32)

    found, expected = (_with_gradients(functools.partial(run, name), q, k, v) for name in ("fused", "dense"))
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left.astype(jnp.float32), right.astype(jnp.float32), atol=0.04)
    assert set(asked) == {"cudnn"}


def _with_gradients(run: Any, *arrays: jax.Array) -> Any:
    out, pull = jax.vjp(run, *arrays)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


NOTHING: dict[str, dict[str, Any]] = {
    "rows of padding": {"k_lengths": jnp.array([0, 16])},
    "far behind the text": {"k_lengths": jnp.array([2, 16]), "window": 7},
    "another document": {"q_segments": jnp.full((2, 16), 3).at[1].set(1), "k_segments": jnp.asarray(SEGMENTS)},
}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("options", NOTHING.values(), ids=NOTHING)
def test_a_query_that_sees_nothing_gives_zeros(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And gradients of zero, whatever a kernel gives where there is nothing to see."""
    theirs = jax.nn.dot_product_attention

    def stand_in(*args: Any, implementation: str, **more: Any) -> jax.Array:
        return theirs(*args, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", functools.wraps(theirs)(stand_in))
    q, k, v = arrays(jnp.bfloat16)

    def run(backend: str, finite: bool, *qkv: jax.Array) -> jax.Array:
        return attend(*qkv, backend=backend, finite=finite, **options).astype(jnp.float32)

    expected = _with_gradients(functools.partial(run, "dense", False), q, k, v)
    for finite in (False, True):
        found = _with_gradients(functools.partial(run, "fused", finite), q, k, v)
        assert (np.asarray(found[0]) == 0).all(axis=(2, 3)).any()
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left.astype(jnp.float32), right.astype(jnp.float32), atol=0.04)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 20}, {"window": (30, 7)}])
def test_the_kernel_of_tpus_is_dense(options: dict[str, Any], packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted: values and gradients, of grouped heads, a length that is no multiple of a block, and infinity that
    segments hide."""
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 137, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    ids: dict[str, Any] = {}
    if packed:
        segments = jnp.asarray(np.repeat([[1, 2, 0], [1, 2, 3]], [60, 50, 27], axis=1))
        ids, v = {"q_segments": segments, "k_segments": segments}, v.at[0, 3, 1, 2].set(jnp.inf)
    monkeypatch.setattr(fused, "splash", functools.partial(fused.splash, interpret=True))

    def run(backend: str, *qkv: jax.Array) -> jax.Array:
        return attend(*qkv, backend=backend, **ids, **options)

    expected = _with_gradients(functools.partial(run, "dense"), q, k, v)
    with compiling_for("tpu"):
        found = _with_gradients(functools.partial(run, "fused"), q, k, v)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.usefixtures("gpu")
def test_what_no_kernel_takes_is_named() -> None:
    q, k, v = arrays()
    with pytest.raises(ValueError, match="no kernel of a GPU takes float32; use backend='blockwise'"):
        attend(q, k, v, backend="fused")


def test_a_cpu_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    q, k, v = arrays()
    with pytest.raises(
        ValueError, match=r"needs a GPU or a TPU.*compiled for cpu; use backend='blockwise' or 'banded'"
    ):
        attend(q, k, v, backend="fused")
    assert choose(q, k, v, band(True, None)).backend == "strips"
