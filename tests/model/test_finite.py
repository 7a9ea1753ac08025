"""Tokens that are not finite, in a stack: exactly those tokens are NaN that see one, through all layers together, and
the others have the values and gradients that they have with any other token there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import ModelConfig
from transformer.model.stacks import Encoded, Stack, stacked
from transformer.model.tokens import PackedTokens, Tokens

B, L, S, D = 2, 13, 7, 8
CONFIG = ModelConfig(num_layers=2, d_model=D, d_ff=12, num_heads=2, dropout=0.0, positions="none", max_positions=64)
SEGMENTS = np.array([[1] * 4 + [2] * 6 + [0] * 3, [1] * 13])
PACKED = np.array([[*range(4), *range(6), *range(3)], [*range(13)]])
SHUFFLED = np.random.default_rng(3).permuted(np.tile(3 * np.arange(L), (B, 1)), axis=1)
PLACES: dict[str, Any] = {
    "whole": Tokens(),
    "lengths": Tokens(lengths=jnp.array([9, 13])),
    "packed": PackedTokens(jnp.asarray(PACKED), jnp.asarray(SEGMENTS)),
    "positions alone": Tokens(jnp.asarray(SHUFFLED)),
    "any positions": Tokens(jnp.asarray(SHUFFLED), jnp.asarray(SEGMENTS)),
}
PATTERNS = {"full": ("full",), "windows": ("window:1", "window:2"), "mixed": ("window:1", "full"), "far": ("window:7",)}


def seen(where: Tokens, causal: bool, pattern: str) -> np.ndarray:
    """[L, L] of each row, by loops: what a layer's query sees."""
    positions, ids = (np.broadcast_to(x, (B, L)) for x in (where.places(L), where.ids(L)))
    window = None if pattern == "full" else int(pattern.split(":")[1])
    sees = np.zeros((B, L, L), bool)
    for b, i, j in np.ndindex(B, L, L):
        ahead = int(positions[b, j]) - int(positions[b, i])
        near = window is None or abs(ahead) <= window
        same = ids[b, j] == 1 if where.segments is None else ids[b, i] == ids[b, j]
        sees[b, i, j] = same and near and not (causal and ahead > 0)
    return sees


def reached(where: Tokens, causal: bool, config: ModelConfig, bad: np.ndarray) -> np.ndarray:
    """Which tokens are not finite after all layers: a layer's token is spoilt by itself, or by a key that it sees."""
    for i in range(config.num_layers):
        bad = bad | (seen(where, causal, config.attention[i % len(config.attention)]) & bad[:, None]).any(axis=2)
    return bad


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("told", PLACES)
def test_what_sees_nan_is_nan_and_nothing_else_changes(told: str, causal: bool, pattern: str) -> None:
    where, config = PLACES[told], dataclasses.replace(CONFIG, attention=PATTERNS[pattern])
    stack = Stack(config, causal)
    x = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)
    params = jax.tree.map(lambda y: y + 0.1, stack.init(jax.random.key(0), jnp.asarray(x), where))
    bad = np.zeros((B, L), bool)
    bad[0, [5, 11]] = True
    spoilt = reached(where, causal, config, bad)
    real = np.broadcast_to(where.real(L), (B, L))
    counts = jnp.asarray(~spoilt & real)[..., None]
    assert spoilt[real].any()
    assert np.asarray(counts).any()

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            out = stack.apply(params, x, where)[0]
            return jnp.sin(jnp.where(counts, out, 0)).sum(), out

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    poisoned = x.copy()
    poisoned[bad, 3] = [np.nan, np.inf]
    (_, out), gradients = run(params, jnp.asarray(poisoned))
    (_, expected), expected_gradients = run(params, jnp.asarray(x))
    found = np.isnan(np.asarray(out))
    np.testing.assert_array_equal(found.any(axis=2)[real], spoilt[real])
    np.testing.assert_array_equal(found.all(axis=2)[real], spoilt[real])
    np.testing.assert_allclose(out[~spoilt & real], expected[~spoilt & real], atol=1e-6)
    for mine, theirs in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("scan", [False, True], ids=["layers", "scanned"])
@pytest.mark.parametrize("packed", [False, True], ids=["lengths", "packed"])
def test_a_memory_that_is_not_finite_spoils_who_reads_it(packed: bool, scan: bool, remat: str) -> None:
    """Cross-attention: tokens of the memory's own document, or of its row, unless it is padding."""
    config = dataclasses.replace(CONFIG, scan_layers=False)
    stack = Stack(config, causal=True, cross=True)
    rng = np.random.default_rng(1)
    x, memory = (rng.normal(size=(B, n, D)).astype(np.float32) for n in (L, S))
    where = PLACES["packed" if packed else "lengths"]
    ids = np.array([[1, 1, 2, 2, 2, 0, 0], [1] * 7])
    keys = Tokens(jnp.asarray(np.tile(np.arange(S), (B, 1))), jnp.asarray(ids)) if packed else Tokens(
        lengths=jnp.array([5, 7])
    )  # fmt: skip
    arguments = (jnp.asarray(x), where, None, None)
    params = stack.init(jax.random.key(0), *arguments, Encoded(jnp.asarray(memory), keys))
    if scan:
        params = {"params": stacked(params["params"], 1)}
    stack = Stack(dataclasses.replace(config, scan_layers=scan, remat=remat), causal=True, cross=True)
    poisoned = memory.copy()
    poisoned[0, 3], poisoned[0, 6] = np.nan, np.inf  # the second is padding

    def run(params: Any, memory: Any) -> Any:
        out = stack.apply(params, *arguments, Encoded(jnp.asarray(memory), keys))[0]
        return jnp.sin(jnp.where(jnp.isfinite(out), out, 0)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(params, poisoned)
    clean = np.where(np.isfinite(poisoned), poisoned, 0)
    _, expected = run(params, clean)
    real = np.asarray(where.real(L))
    spoilt = (SEGMENTS == 2) if packed else np.ones((B, L), bool)
    spoilt = spoilt & (np.arange(B) == 0)[:, None] & real
    np.testing.assert_array_equal(np.isnan(np.asarray(out)).all(axis=2)[real], spoilt[real])
    np.testing.assert_allclose(out[real & ~spoilt], expected[real & ~spoilt], atol=2e-6)
    for path, y in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(y).all(), jax.tree_util.keystr(path)
