"""Position tables of another length, by NumPy. Those of images, by SciPy, are in tests/test_beginning.py."""

import jax.numpy as jnp
import numpy as np

from transformer.model import resizing


def test_between_positions_by_numpy_and_scipy() -> None:
    table = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    made = np.asarray(resizing.resized(jnp.asarray(table), 12))
    at = np.linspace(0, 4, 12)
    for column in range(3):
        np.testing.assert_allclose(made[:, column], np.interp(at, np.arange(5), table[:, column]), atol=1e-6)
    np.testing.assert_array_equal(made[[0, -1]], table[[0, -1]])
    np.testing.assert_array_equal(resizing.resized(jnp.asarray(table), 5), table)
