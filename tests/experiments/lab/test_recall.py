"""The task of recall asks for what was stored, where it says."""

import numpy as np

from experiments.lab import recall


def test_recall_asks_for_what_is_stored() -> None:
    """Against a reading of each row, token by token."""
    r, length = recall, 48
    tokens, answers, distances = r.draw(np.random.default_rng(3), 50, length)
    assert tokens.shape == answers.shape == distances.shape == (50, length)
    for row in range(50):
        stored: dict[int, tuple[int, int]] = {}
        for place, token in enumerate(tokens[row]):
            if token >= r.FIRST_STORE:
                key, value = divmod(int(token) - r.FIRST_STORE, r.VALUES)
                assert key not in stored, "each key is stored once"
                stored[key] = (value, place)
                assert answers[row, place] == -1
            elif token > 0:
                value, at = stored[int(token) - 1]
                assert (answers[row, place], distances[row, place]) == (value, place - at)
            else:
                assert answers[row, place] == -1
        assert len(stored) == r.KEYS
    assert set(np.unique(answers)) == {-1, *range(r.VALUES)}
