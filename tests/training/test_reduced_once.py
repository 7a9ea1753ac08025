"""Gradients are added over "data" once a step, whatever the number of micro-batches, and the losses stay the same."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.training.tiny import DECODER, MESHES, Made, on, tiny, train
from transformer.accelerators.program import collectives
from transformer.config import Config

PARTS = 4
SMALL = 512  # bytes; metrics are less


def _config(**changes: Any) -> Config:
    return tiny(**DECODER | {"model.scan_layers": True} | changes)


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    return train(on(_config(), data=1), 2)[1]


@pytest.mark.parametrize("mesh", ["data 8", "fsdp 2 x 4", pytest.param("tensor 2 x 4", marks=pytest.mark.slow)])
def test_one_reduction_of_the_gradient(alone: np.ndarray, mesh: str) -> None:
    """Counted in the compiled program. Dropout and ragged rows, also whole devices of padding, are in the losses."""
    config = on(_config(), **MESHES[mesh], accumulate=PARTS)
    made = Made(config)
    over_data = [one for one in collectives(made.compiled_text(), 8) if one.devices == MESHES[mesh]["data"]]
    added = [one for one in over_data if one.kind == "all-reduce" and one.result_bytes > SMALL]
    state = jax.eval_shape(made.create, np.uint32(0))
    places = jax.tree.leaves(made.layout.shardings(state.params))
    shares = [place.shard_shape(x.shape) for place, x in zip(places, jax.tree.leaves(state.params), strict=True)]
    assert {one.times for one in added} == {1}
    held = sum(4 * int(np.prod(shape)) for shape in shares)
    assert held * 0.9 <= sum(one.result_bytes for one in added) <= held + SMALL
    lines = train(config, 2)[1]
    np.testing.assert_allclose(lines, alone, rtol=1e-6)


def test_fsdp_adds_its_shares_in_every_micro_batch() -> None:
    """A device has room for its share of a gradient only."""
    sent = collectives(Made(on(_config(), **MESHES["fsdp 8"], accumulate=PARTS)).compiled_text(), 8)
    assert max(one.times for one in sent if one.kind in ("all-reduce", "reduce-scatter")) >= PARTS
