"""Who sees whom, against the matrices of the docstring and a loop."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.model.masks import band, visible

BIDIRECTIONAL = """
1 1 1 . .
1 1 1 1 .
1 1 1 1 1
. 1 1 1 1
. . 1 1 1
"""
CAUSAL = """
1 . . . .
1 1 . . .
1 1 1 . .
. 1 1 1 .
. . 1 1 1
"""


def matrix(text: str) -> np.ndarray:
    return np.array([[cell == "1" for cell in line.split()] for line in text.strip().splitlines()])


@pytest.mark.parametrize(("causal", "text"), [(False, BIDIRECTIONAL), (True, CAUSAL)])
def test_the_matrices_for_two_neighbours(causal: bool, text: str) -> None:
    places = jnp.arange(5)
    np.testing.assert_array_equal(visible(places, places, None, None, band(causal, 2)), matrix(text))


def test_the_docstring_shows_these_matrices() -> None:
    import transformer.model.masks as masks

    rows = [line.split() for line in (masks.__doc__ or "").splitlines() if set(line.split()) == {"1", "."}]
    drawn = [" ".join(row[:5]) for row in rows], [" ".join(row[5:]) for row in rows]
    # The middle row of the bidirectional matrix has no dot, so its causal half is what marks the line.
    assert drawn == (BIDIRECTIONAL.strip().splitlines(), CAUSAL.strip().splitlines())


@pytest.mark.parametrize(
    ("causal", "window", "limits"),
    [
        (False, None, (None, None)),
        (True, None, (None, 0)),
        (False, 3, (3, 3)),
        (True, 3, (3, 0)),
        (False, 0, (0, 0)),
        (True, 0, (0, 0)),
        (False, (2, 5), (2, 5)),
        (True, (2, 5), (2, 0)),
        (False, (0, 5), (0, 5)),
    ],
)
def test_band(causal: bool, window: int | tuple[int, int] | None, limits: tuple[int | None, int | None]) -> None:
    assert band(causal, window) == limits


@pytest.mark.parametrize("window", [-1, (-1, 2), (2, -1)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_negative_window_is_refused(causal: bool, window: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"negative.*0 or more"):
        band(causal, window)


def test_visible_is_a_function_of_positions_and_segments() -> None:
    """Any positions, in any order, on both sides: the index of a token says nothing."""
    rng = np.random.default_rng(0)
    q_positions, k_positions = rng.integers(0, 9, (2, 7)), rng.integers(0, 9, (2, 11))
    q_segments, k_segments = rng.integers(0, 3, (2, 7)), rng.integers(0, 3, (2, 11))
    for limits in [(None, None), (2, 0), (None, 0), (1, 3), (0, None)]:
        left, right = limits
        expected = np.zeros((2, 7, 11), bool)
        for b, i, j in itertools.product(range(2), range(7), range(11)):
            ahead = k_positions[b, j] - q_positions[b, i]
            expected[b, i, j] = (
                q_segments[b, i] == k_segments[b, j]
                and (left is None or ahead >= -left)
                and (right is None or ahead <= right)
            )
        arrays = (jnp.asarray(x) for x in (q_positions, k_positions, q_segments, k_segments))
        np.testing.assert_array_equal(visible(*arrays, limits), expected)
