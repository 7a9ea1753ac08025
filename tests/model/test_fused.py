"""Which kernel takes a call, and what it is given. No kernel runs here: XLA stands in for cuDNN."""

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

fused = importlib.import_module("transformer.model.attention.fused")


def arrays(dtype: Any = jnp.float32, keys: int = 16, width: int = 8) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = ((2, 16, 4, 8), (2, keys, 2, 8), (2, keys, 2, width))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU to all appearances, without tokamax."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"causal": True}, True),
        ({"causal": True, "window": 3}, True),
        ({"causal": True, "window": (3, 9)}, True),  # causal: nothing is ahead
        ({"window": 3}, False),
        ({"window": (3, 0)}, True),  # the same as causal
        ({"dtype": jnp.float32}, False),
        ({"dtype": jnp.float16}, True),
        ({"width": 4}, False),
        ({"keys": 12}, True),
        ({"keys": 12, "causal": True}, False),
        ({"score": AlibiBias(4)}, False),
        ({"padding": "segments"}, False),
        ({"padding": "lengths"}, True),
        ({"consecutive": False}, False),
    ],
)
def test_cudnn_takes_what_it_can(changes: dict[str, Any], taken: bool) -> None:
    shape = {name: changes.pop(name) for name in ("keys", "width") if name in changes}
    limits = band(changes.pop("causal", False), changes.pop("window", None))
    q, k, v = arrays(changes.pop("dtype", jnp.bfloat16), **shape)
    choice = choose(q, k, v, limits, **changes)
    assert (choice.backend == "fused") == taken
    assert choice.reason.startswith("cudnn") == taken


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


@pytest.mark.usefixtures("gpu")
def test_what_no_kernel_takes_is_named() -> None:
    q, k, v = arrays()
    ones = jnp.ones((2, 16), jnp.int32)
    with pytest.raises(ValueError, match=r"segments, biases and positions.*float32, and tokamax.*not installed; use"):
        attend(q, k, v, q_segments=ones, k_segments=ones, backend="fused")


def test_a_cpu_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    q, k, v = arrays()
    with pytest.raises(
        ValueError, match=r"needs a GPU or a TPU.*compiled for cpu; use backend='blockwise' or 'banded'"
    ):
        attend(q, k, v, backend="fused")
    assert choose(q, k, v, band(True, None)).backend == "dense"


def test_tokamax_is_asked_for_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own XLA path, where it is installed (the `kernels` extra, Python 3.12 and newer)."""
    pytest.importorskip("tokamax", reason="the kernels extra is not installed")
    monkeypatch.setattr(fused, "kernel", lambda *_, **__: ("tokamax", ""))
    q, k, v = arrays()
    segments = jnp.asarray(np.repeat([1, 2, 0], [8, 6, 2])[None].repeat(2, axis=0))
    for options in (
        {"causal": True}, {"window": (2, 1)}, {"causal": True, "score": AlibiBias(4)},
        {"causal": True, "q_segments": segments, "k_segments": segments},
    ):  # fmt: skip
        found, expected = (attend(q, k, v, backend=backend, **options) for backend in ("fused", "dense"))
        np.testing.assert_allclose(found, expected, atol=1e-5)
