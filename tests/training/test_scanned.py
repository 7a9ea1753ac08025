"""Scanned stacks train as single layers do, whatever else a step does: every pair of features that have met there."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.training.tiny import DECODER, on, tiny, train
from transformer.config import override
from transformer.model.stacks import unstacked

LAYERS = 2
# Adam's eps is so large that rounding in a gradient stays rounding in a step.
BASE = DECODER | {
    "model.num_layers": LAYERS,
    "optimizer.eps": 1e-3,
    "optimizer.warmup_steps": 1,
    "optimizer.learning_rate": 1e-2,
}


@pytest.mark.parametrize(
    ("changes", "mesh", "tolerance"),
    [
        # Biases and scales of scanned layers have two axes and are no matrices: a step would take 5e-3 off each scale.
        ({"optimizer.weight_decay": 0.5}, {}, 2e-6),
        ({"model.remat": "full"}, {}, 2e-6),
        ({"model.remat": "dots", "model.norm": "pre"}, {}, 2e-6),
        ({"mesh.accumulate": 4, "optimizer.weight_decay": 0.5}, {}, 2e-6),
        ({"optimizer.weight_decay": 0.5}, {"data": 2, "fsdp": 2, "tensor": 2}, 2e-6),
        ({"model.remat": "full", "mesh.accumulate": 2}, {"data": 1, "fsdp": 8}, 2e-6),
        # One compiled body for all layers rounds elsewhere than layers that are fused with each other.
        ({"model.dtype": "bfloat16", "model.remat": "full"}, {}, 2e-3),
    ],
)
def test_scanned_layers_train_as_single_ones(changes: dict[str, Any], mesh: dict[str, int], tolerance: float) -> None:
    config = on(tiny(**BASE | changes), **{"data": 1} | mesh)
    single, lines = train(config, 2)
    scanned, scanned_lines = train(override(config, {"model.scan_layers": True}), 2)
    np.testing.assert_allclose(scanned_lines, lines, rtol=1e-5 if tolerance < 1e-5 else 1e-2)
    found = unstacked(jax.device_get(scanned.params), LAYERS)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(single.params)), jax.tree.leaves(found), strict=True
    ):
        np.testing.assert_allclose(y, x, atol=tolerance, err_msg=jax.tree_util.keystr(path))
