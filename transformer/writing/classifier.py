"""Generation of class names."""

from typing import Any

import jax
import numpy as np

from transformer.tasks.trained import Trained
from transformer.training.sharding import make_layout
from transformer.writing.manner import Output
from transformer.writing.slices import rows_of


class Classifier:
    """Returns the class name of each row of padded tokens; the score is its log-probability."""

    def __init__(self, trained: Trained) -> None:
        layout = make_layout(trained.sized, axes=trained.task.axes)

        def predict(params: Any, batch: Any) -> jax.Array:
            with layout.tracing():
                return jax.nn.log_softmax(trained.task.predict(params, batch))

        self._predict = jax.jit(predict, in_shardings=(None, layout.rows), out_shardings=layout.replicated)
        self._params, self._names = trained.params, trained.classes
        self.devices, self._shards = layout.mesh.size, layout.row_shards
        self.compiled: set[tuple[int, ...]] = set()

    def rows(self, width: int) -> int:
        """Rows of a slice of this width, over all devices."""
        return rows_of(width) * self._shards

    def __call__(self, tokens: Any, lengths: Any, numbers: Any) -> list[list[Output]]:
        """The most likely class of each row."""
        scores = self.log_probabilities(tokens, lengths)
        return [[Output(self._names[row.argmax()], float(row.max()))] for row in scores]

    def log_probabilities(self, inputs: Any, lengths: Any) -> np.ndarray:
        """The log-probability of every class [B, V]; images have no use for `lengths`."""
        return np.asarray(self._predict(self._params, {"inputs": inputs, "input_lengths": lengths}))
