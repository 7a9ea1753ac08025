"""The extension point of attention: functions that change the scores before the softmax.

A score function takes scores [*B, H, L, S] in float32 and the positions of their queries [*B, L] and keys [*B, S], and
returns scores of the same shape. It is called on whole arrays or on tiles, so it may depend on positions and on each
score, but not on the shape or on neighbouring scores:

    def soft_cap(scores, q_positions, k_positions):
        return 50 * jnp.tanh(scores / 50)

    attend(q, k, v, score=soft_cap)

Any callable works. In every backend, gradients reach the arrays that it closes over. A score function that a stack
passes to its layers (`transformer.model.positions`) is a pytree of its weights, so that layers can be rematerialized
and scanned.
"""

import abc
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

# The score of a hidden key, and the least maximum: e^(HIDDEN - LOWEST) is 0, so without visible keys weights are 0.
HIDDEN = float(np.finfo(np.float32).min)
LOWEST = HIDDEN / 2


@runtime_checkable
class Score(Protocol):
    """scores, q_positions, k_positions -> scores."""

    def __call__(
        self,
        scores: Float[Array, "*B H L S"],
        q_positions: Int[Array, "*#B L"],
        k_positions: Int[Array, "*#B S"],
    ) -> Float[Array, "*B H L S"]: ...


class Bias(abc.ABC):
    """A score function that adds a bias for each head and pair of positions."""

    @abc.abstractmethod
    def bias(self, q_positions: Int[Array, "*B L"], k_positions: Int[Array, "*B S"]) -> Float[Array, "*B H L S"]:
        """The bias."""

    def __call__(
        self,
        scores: Float[Array, "*B H L S"],
        q_positions: Int[Array, "*#B L"],
        k_positions: Int[Array, "*#B S"],
    ) -> Float[Array, "*B H L S"]:
        return scores + self.bias(q_positions, k_positions)
