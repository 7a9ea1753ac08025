"""What can be said of a head in a number: statistics of attention maps, and rollout. NumPy, in float64."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from transformer.analysis.attention import Attention


class HeadStatistics(NamedTuple):
    """Of each head, the mean over the queries that are no padding."""

    entropy: Float[np.ndarray, "N H"]  # nats; 0 looks at one place, ln S at all of S alike
    distance: Float[np.ndarray, "N H"]  # positions between a query and what it sees, weighted
    before: Float[np.ndarray, "N H"]  # share of the weight on the position before
    itself: Float[np.ndarray, "N H"]
    after: Float[np.ndarray, "N H"]
    first: Float[np.ndarray, "N H"]  # share on position 0, such as BOS or CLS


def head_statistics(attention: Attention) -> HeadStatistics:
    """Entropy, mean distance and shares of every head.

    Of cross-attention, a target's position is compared with a source's. Raises ValueError where there is no query but
    padding.
    """
    weights = np.asarray(attention.weights, np.float64)
    real = np.asarray(attention.queries.segments) > 0
    if not real.any():
        raise ValueError("there is no query but padding: give a row with a token")
    offset = np.asarray(attention.keys.positions)[:, None, :] - np.asarray(attention.queries.positions)[:, :, None]
    first = np.broadcast_to(np.asarray(attention.keys.positions)[:, None, :] == 0, offset.shape)

    def mean(each: Float[np.ndarray, "N B H L"]) -> Float[np.ndarray, "N H"]:
        return np.einsum("nbhl,bl->nh", each, real / real.sum())

    def share(of: np.ndarray) -> Float[np.ndarray, "N H"]:
        return mean(np.einsum("nbhls,bls->nbhl", weights, of))

    surprise = -np.log(np.where(weights > 0, weights, 1.0))
    return HeadStatistics(
        entropy=mean((weights * surprise).sum(-1)),
        distance=share(np.abs(offset)),
        before=share(offset == -1),
        itself=share(offset == 0),
        after=share(offset == 1),
        first=share(first),
    )


def rollout(weights: Float[Any, "N B H L L"]) -> Float[np.ndarray, "N B L L"]:
    """How much of each input has come to each place after layer 1, 2, ... N (Abnar & Zuidema 2020, section 3).

    A_i = (W_i + I) / 2 is the mean over heads and the residual stream, its rows made to sum to 1, and the rollout up to
    layer n is A_n ... A_1. The feed-forward layers and the sizes of vectors are left out, as in the paper.
    """
    mixed = (np.asarray(weights, np.float64).mean(axis=2) + np.eye(weights.shape[-1])) / 2
    mixed /= mixed.sum(axis=-1, keepdims=True)
    flows = [mixed[0]]
    for layer in mixed[1:]:
        flows.append(layer @ flows[-1])
    return np.stack(flows)
