"""Tiles side by side, as accelerators compute them, against `dense`: values and gradients. They are plain XLA, so a CPU
runs them where the target is an accelerator."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import platforms
from transformer.model.attention import attend
from transformer.model.attention.beside import plan_of
from transformer.model.masks import band
from transformer.model.positions import AlibiBias, T5Bias

LENGTH, HEADS, GROUPS = 293, 4, 2  # a prime: no block divides it
DOCUMENTS = np.repeat([[1, 2, 0], [1, 2, 3]], [120, 100, 73], axis=1)


@pytest.fixture(params=[1 << 30, 1 << 21], ids=["one chunk", "chunks"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    small = dataclasses.replace(platforms.PLATFORMS["gpu"], side_by_side=request.param)
    monkeypatch.setitem(platforms.PLATFORMS, "gpu", small)
    with platforms.compiling_for("gpu"):
        yield


def arrays(dtype: Any = jnp.float32, keys: int = LENGTH) -> tuple[jax.Array, ...]:
    shapes = ((2, LENGTH, HEADS, 8), (2, keys, GROUPS, 8), (2, keys, GROUPS, 5))
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def with_gradients(run: Any, *arrays: Any) -> Any:
    def both(*arrays: Any) -> Any:
        out, pull = jax.vjp(run, *arrays)
        return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))

    return jax.jit(both)(*arrays)


def check(backend: str, qkv: tuple[jax.Array, ...], atol: float = 3e-5, **options: Any) -> None:
    found, expected = (
        with_gradients(functools.partial(attend, backend=name, **options), *qkv) for name in (backend, "dense")
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=atol)


def packed() -> dict[str, Any]:
    ids = jnp.asarray(DOCUMENTS)
    return {"q_segments": ids, "k_segments": ids}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("backend", "padding", "options"),
    [
        ("blockwise", "none", {}),
        ("blockwise", "lengths", {}),
        ("blockwise", "segments", {"causal": True}),
        ("blockwise", "lengths", {"window": (3, 40)}),
        ("banded", "none", {"causal": True, "window": 17}),
        ("banded", "segments", {"causal": True, "window": 128}),
        ("banded", "lengths", {"window": (130, 7)}),
        ("banded", "segments", {"window": (0, 290)}),
        ("banded", "none", {"window": 400}),
    ],
)
def test_tiles_side_by_side_are_dense(backend: str, options: dict[str, Any], padding: str) -> None:
    """Of grouped heads, with a row of nothing but padding."""
    of_padding = {"none": {}, "lengths": {"k_lengths": jnp.asarray([211, 0])}, "segments": packed()}[padding]
    check(backend, arrays(), **options, **of_padding)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("backend", ["blockwise", "banded"])
def test_in_bfloat16(backend: str) -> None:
    check(backend, arrays(jnp.bfloat16), atol=0.06, window=60, **packed())


@pytest.mark.usefixtures("gpu")
def test_more_keys_than_queries_and_positions_of_ones_own() -> None:
    keys = LENGTH + 10
    at = jnp.asarray(np.random.default_rng(3).permutation(keys))[None]
    check("blockwise", arrays(keys=keys), causal=True, q_positions=at[:, 10:], k_positions=at)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("backend", ["blockwise", "banded"])
def test_scores_are_changed_and_their_weights_get_gradients(backend: str) -> None:
    table = jnp.asarray(np.random.default_rng(4).normal(size=(32, HEADS)), jnp.float32)

    def run(backend: str, table: jax.Array, *qkv: jax.Array) -> jax.Array:
        cap = T5Bias(table, causal=False)
        return attend(*qkv, window=50, score=lambda *x: 9 * jnp.tanh(cap(*x) / 9), backend=backend, **packed())

    found, expected = (with_gradients(functools.partial(run, name), table, *arrays()) for name in (backend, "dense"))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    check(backend, arrays(), window=50, score=AlibiBias(HEADS))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("backend", ["blockwise", "banded"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_hidden_has_no_influence(backend: str, bad: float) -> None:
    """In keys, values and queries; whoever sees it gets NaN and no gradient."""
    q, k, v = arrays()
    k, v, q = k.at[0, 150, 1, 3].set(bad), v.at[1, 30, 0].set(bad), q.at[1, 200, 2, 0].set(bad)
    check(backend, (q, k, v), causal=True, window=20, **packed())


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("options", [{}, {"causal": True, "window": 128}, {"window": 9}])
def test_there_is_no_branch_gather_or_scatter(options: dict[str, Any]) -> None:
    """Nor a loop, where all tiles are one chunk."""
    backend = "banded" if options else "blockwise"
    run = functools.partial(attend, backend=backend, **options, **packed())
    text = jax.jit(jax.grad(lambda *qkv: run(*qkv).sum(), argnums=(0, 1, 2))).lower(*arrays()).as_text()
    assert not any(f"stablehlo.{op}" in text for op in ("case", "if", "gather", "scatter"))
    limits = band(options.get("causal", False), options.get("window"))
    plan = plan_of(2, HEADS, LENGTH, LENGTH, limits, by_index=bool(options))
    assert text.count("stablehlo.while") == (0 if plan.chunks == 1 else 2)


def test_a_plan_keeps_to_the_bytes_and_to_the_band() -> None:
    with platforms.compiling_for("gpu"):
        for length in (65_536, 131_072):
            plan = plan_of(1, 12, length, length, (128, 0), by_index=True)
            scores = plan.side * plan.keys * (plan.ahead + 1 + plan.after)
            assert scores * plan.tiles * 12 * 4 <= platforms.tuned().side_by_side
            assert scores * plan.tiles * plan.chunks <= 2.5 * 129 * length
        plan = plan_of(32, 12, 1024, 1024, (None, None), by_index=False)
        assert plan.side * 32 * 12 * 1024 * 4 <= platforms.tuned().side_by_side < 2 * plan.side * 32 * 12 * 1024 * 4
