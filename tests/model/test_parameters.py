"""Every parameter of every family says the names of its axes, in single layers and in scanned ones."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from transformer.config import ModelConfig, load_file, override
from transformer.describe import shapes
from transformer.model.parameters import parameter
from transformer.tasks.untrained import task_of

CONFIGS = ("quantities", "docstrings", "bert_base", "t5_small", "vit_b16", "speech", "transcripts", "co2", "recurrent")
KNOWN = {"vocabulary", "width", "places", "buckets", "bias_heads", "model", "heads", "key_heads", "inner", "in", "out"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_axis_has_a_name(name: str) -> None:
    config = load_file(f"configs/{name}.py")
    variants: list[dict[str, Any]] = [{}]
    if not config.model.family.startswith("recurrent"):
        config = override(config, {"model.max_positions": 1024})
        variants += [{"model.scan_layers": True}, {"model.positions": "t5"}, {"model.positions": "learned"}]
    for changes in variants:
        config = override(config, changes)
        axes, found = task_of(config).axes, shapes(config)
        assert axes.keys() == found.keys()
        for path, shape in found.items():
            names = axes[path]
            assert len(names) == len(shape), path
            in_stack = "layers_" in path
            assert (names[0] == "layers") == in_stack, path
            assert set(names[in_stack:]) <= KNOWN, path


def test_the_names_are_those_of_what_is_split() -> None:
    axes = task_of(load_file("configs/quantities.py")).axes
    layer = "decoder/layer_0/"
    assert axes["embedder/table"] == ("vocabulary", "width")
    assert axes[f"{layer}self_attention/query/kernel"] == ("model", "heads")
    assert axes[f"{layer}cross_attention/value/kernel"] == ("model", "key_heads")
    assert axes[f"{layer}self_attention/out/kernel"] == ("heads", "model")
    assert axes[f"{layer}feed_forward/inner/kernel"] == ("model", "inner")
    assert axes[f"{layer}feed_forward/inner/bias"] == ("inner",)
    assert axes[f"{layer}feed_forward/outer/kernel"] == ("inner", "model")
    assert axes[f"{layer}feed_forward_residual/norm/scale"] == ("model",)
    scanned = task_of(override(load_file("configs/quantities.py"), {"model.scan_layers": True})).axes
    assert scanned["decoder/layers_0/feed_forward/outer/kernel"] == ("layers", "inner", "model")


class Wrong(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x @ parameter(self, "kernel", nn.initializers.ones, (x.shape[-1], 3), ("in",))


def test_a_parameter_without_a_name_for_each_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'kernel' has shape \(2, 3\) and axes \('in',\)"):
        Wrong(ModelConfig()).init(jax.random.key(0), jnp.ones((1, 2)))
