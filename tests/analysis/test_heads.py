"""Statistics of heads in closed form and against a loop; rollout."""

import itertools
from typing import Any

import numpy as np
import pytest

from transformer.analysis.attention import Attention
from transformer.analysis.heads import head_statistics, rollout
from transformer.model.tokens import Tokens


def places(length: int, real: int | None = None, rows: int = 1) -> Tokens:
    positions = np.tile(np.arange(length), (rows, 1))
    return Tokens(positions, (positions < (length if real is None else real)).astype(np.int32))


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).dirichlet(np.ones(shape[-1]), shape[:-1])


def test_heads_in_closed_form() -> None:
    size = 7
    eye = np.eye(size)
    back = np.vstack([eye[0], eye[:-1]])  # the position before; the first looks at itself
    kinds = np.stack([eye, back, np.full((size, size), 1 / size), np.tile(eye[0], (size, 1))])
    found = head_statistics(Attention(kinds[None, None], places(size), places(size)))
    np.testing.assert_allclose(found.entropy[0], [0, 0, np.log(size), 0], atol=1e-12)
    # Of two places drawn from 7: (7² - 1) / (3 · 7).
    np.testing.assert_allclose(found.distance[0], [0, 6 / 7, 48 / 21, 3])
    np.testing.assert_allclose(found.itself[0], [1, 1 / 7, 1 / 7, 1 / 7])
    np.testing.assert_allclose(found.before[0], [0, 6 / 7, 6 / 49, 1 / 7])
    np.testing.assert_allclose(found.after[0], [0, 0, 6 / 49, 0])
    np.testing.assert_allclose(found.first[0], [1 / 7, 2 / 7, 1 / 7, 1])


def test_statistics_against_a_loop_over_packed_rows_and_cross_attention() -> None:
    N, B, H, L, S = 2, 3, 2, 5, 7
    weights = drawn(N, B, H, L, S)
    queries = Tokens(np.tile([0, 1, 2, 0, 1], (B, 1)), np.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]))
    keys = Tokens(np.tile([0, 1, 2, 3, 0, 1, 2], (B, 1)), np.ones((B, S), int))
    found = head_statistics(Attention(weights, queries, keys))
    expected = {name: np.zeros((N, H)) for name in found._fields}
    for n, b, h, i, j in itertools.product(*map(range, (N, B, H, L, S))):
        if queries.segments[b, i]:
            offset, w = keys.positions[b, j] - queries.positions[b, i], weights[n, b, h, i, j] / 11
            expected["entropy"][n, h] -= w * np.log(weights[n, b, h, i, j])
            expected["distance"][n, h] += w * abs(offset)
            for name, at in (("before", -1), ("itself", 0), ("after", 1)):
                expected[name][n, h] += w * (offset == at)
            expected["first"][n, h] += w * (keys.positions[b, j] == 0)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, err_msg=name)


def test_statistics_need_a_query() -> None:
    with pytest.raises(ValueError, match="no query but padding"):
        head_statistics(Attention(drawn(1, 1, 1, 3, 3), places(3, real=0), places(3)))


def test_rollout_against_a_loop() -> None:
    weights = drawn(3, 2, 4, 5, 5)
    weights[1, 0, :, 2] = 0  # a query that sees nothing keeps what it has
    found: Any = rollout(weights)
    for b in range(2):
        flow = np.eye(5)
        for n in range(3):
            mixed = np.zeros((5, 5))
            for i in range(5):
                row = [0.5 * weights[n, b, :, i, j].mean() + 0.5 * (i == j) for j in range(5)]
                mixed[i] = np.array(row) / sum(row)
            flow = mixed @ flow
            np.testing.assert_allclose(found[n, b], flow)
    np.testing.assert_allclose(found.sum(-1), 1)
