"""Statistics of attention maps, and rollout. NumPy, in float64."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from transformer.analysis.attention import Attention


class HeadStatistics(NamedTuple):
    """Of each head, the mean over the queries that are not padding."""

    entropy: Float[np.ndarray, "N H"]  # nats; 0: all weight on one key, ln S: uniform over S keys
    distance: Float[np.ndarray, "N H"]  # weighted mean of |key position - query position|
    before: Float[np.ndarray, "N H"]  # share of the weight on the previous position
    itself: Float[np.ndarray, "N H"]
    after: Float[np.ndarray, "N H"]
    first: Float[np.ndarray, "N H"]  # share on position 0, such as BOS or CLS


def head_statistics(attention: Attention) -> HeadStatistics:
    """Entropy, mean distance and shares of every head. In cross-attention, target positions are compared with source
    positions. ValueError: all queries are padding."""
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
    """How much of each input reaches each position after layer 1, 2, ... N (Abnar & Zuidema 2020, section 3). A_i =
    (W_i + I) / 2 is the mean over heads plus the residual connection, with rows normalised to sum 1, and the rollout up
    to layer n is A_n ... A_1. Feed-forward layers and the norms of vectors are ignored, as in the paper."""
    mixed = (np.asarray(weights, np.float64).mean(axis=2) + np.eye(weights.shape[-1])) / 2
    mixed /= mixed.sum(axis=-1, keepdims=True)
    flows = [mixed[0]]
    for layer in mixed[1:]:
        flows.append(layer @ flows[-1])
    return np.stack(flows)
