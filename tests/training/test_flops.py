"""FLOPs of a step, against figures that others counted; and where parameters lie."""

from pathlib import Path

import numpy as np
import pytest

from transformer import describe
from transformer.config import Config, load_file, override
from transformer.errors import UserError
from transformer.tasks.untrained import longest_batch
from transformer.training.flops import batch_flops, step_flops

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def gpt2() -> Config:
    return load_file(CONFIGS / "gpt2_124m.py")


@pytest.fixture(scope="module")
def gpt2_shapes(gpt2: Config) -> dict[str, tuple[int, ...]]:
    return describe.shapes(gpt2)


def test_flops_of_gpt2_are_those_that_nanogpt_counts(gpt2: Config, gpt2_shapes: dict[str, tuple[int, ...]]) -> None:
    """291,648,307,200 forward and twice that backward, for one row of 1,024 tokens."""
    assert step_flops(gpt2, gpt2_shapes, 1, 1024) == 3 * 291_648_307_200
    windowed = override(gpt2, {"model.attention": ["window:63"]})
    attention = 2 * 12 * 128 * 12 * 1024
    assert step_flops(windowed, gpt2_shapes, 1, 1024) == 3 * (291_648_307_200 - attention * (1024 - 127))


def test_flops_of_sides_of_different_lengths_by_hand() -> None:
    """The encoder, and keys and values of cross-attention, are computed for the source; all others for the target."""
    width, inner, vocabulary = 16, 32, 50
    small = {"num_layers": 3, "d_model": width, "d_ff": inner, "num_heads": 4, "vocab_size": vocabulary}
    config = override(Config(), {f"model.{key}": value for key, value in small.items()})
    shapes, rows, source, target = describe.shapes(config), 5, 7, 11
    attention, feed = 4 * width**2, 2 * width * inner
    encoder = source * 2 * (attention + feed) + source * source * 2 * 2 * width
    decoder = target * 2 * (attention + feed) + target * target * 2 * 2 * width
    cross = 2 * 2 * width**2 * (source + target) + target * source * 2 * 2 * width
    expected = 3 * rows * (3 * (encoder + decoder + cross) + target * 2 * vocabulary * width)
    assert step_flops(config, shapes, rows, target, source) == expected
    batch = {"inputs": np.zeros((rows, source)), "targets": np.zeros((rows, target))}
    assert batch_flops(config, shapes, batch) == expected
    assert step_flops(config, shapes, rows, target) == step_flops(config, shapes, rows, target, target)


def test_where_parameters_lie(gpt2: Config) -> None:
    config, devices = describe.on_mesh(gpt2, "data=32,fsdp=8")
    rows = {path: (split, size) for path, _, split, size in describe.placement(config, devices)}
    assert rows["embedder/table"] == ("fsdp: 768/8", 4 * 50_257 * 96)
    assert rows["decoder/layer_0/feed_forward/inner/kernel"] == ("fsdp: 768/8", 4 * 96 * 3072)
    assert rows["decoder/final_norm/scale"] == ("whole", 4 * 768)


def test_the_longest_batch_is_that_of_the_pipeline() -> None:
    config = override(Config(), {"data.max_len": 60, "data.batch_tokens": 1000, "data.row_multiple": 4})
    assert longest_batch(config) == (64, 12)


@pytest.mark.parametrize("mesh", ["fsdp", "fsdp=0", "rows=2", "data=2;fsdp=2", "data=-1"])
def test_a_mesh_that_is_none_is_a_sentence(gpt2: Config, mesh: str) -> None:
    with pytest.raises(UserError, match=r"--mesh=.*write data, fsdp, sequence or tensor"):
        describe.on_mesh(gpt2, mesh)


def test_flops_are_of_texts() -> None:
    with pytest.raises(UserError, match="FLOPs are counted for Transformers of texts"):
        step_flops(load_file(CONFIGS / "vit.py"), {}, 1, 1)
