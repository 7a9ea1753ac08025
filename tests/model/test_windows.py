"""Windows by folded chunks: halos, padding at the end of a row, several turns of the loop, held to `dense`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import platforms
from transformer.model.attention import attend
from transformer.model.attention.windows import Fold
from transformer.model.masks import band


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [43, 48, 53])
@pytest.mark.parametrize(("causal", "window"), [(True, 3), (False, 3), (False, (1, 5)), (False, (5, 0)), (True, 13)])
def test_chunks_are_the_whole_row(
    causal: bool, window: int | tuple[int, int], length: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In values and gradients, with several chunks of a row in each case."""
    small = dataclasses.replace(
        platforms.PLATFORMS["cpu"], window_strip=(2, 2), window_turn=1 << 8, strip_pairs=10**6
    )  # fmt: skip
    monkeypatch.setitem(platforms.PLATFORMS, "cpu", small)
    assert Fold.of(length, band(causal, window)).chunks >= 3
    rng = np.random.default_rng(length)
    q, k, v, change = (jnp.asarray(rng.normal(size=(2, length, 2, 5)), jnp.float32) for _ in range(4))
    ids = jnp.asarray(np.sort(rng.integers(1, 4, (2, length)), axis=1))
    told = {"q_segments": ids, "k_segments": ids} if packed else {}

    def of(backend: str) -> tuple[jax.Array, ...]:
        call = lambda q, k, v: attend(q, k, v, causal=causal, window=window, backend=backend, **told)  # noqa: E731
        out, back = jax.vjp(call, q, k, v)
        return out, *back(change)

    for ours, expected in zip(of("banded"), of("dense"), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)
