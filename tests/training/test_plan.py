"""A step on paper, against figures that others counted."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from transformer.training.collectives import collectives
from transformer.training.plan import ACCELERATORS, Accelerator, batch_flops, longest_batch, make_plan, step_flops

from tests.training.tiny import DECODER, MESHES, Made, on, tiny
from transformer import describe
from transformer.config import Config, load_file, override
from transformer.errors import UserError
from transformer.training.sharding import Layout, make_layout

CONFIGS = Path(__file__).parents[2] / "configs"


def layout(config: Config, devices: int) -> Layout:
    """On paper, with the names of the parameters' axes."""
    return make_layout(config, devices, describe.task_of(config).axes)


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


def test_a_plan_by_hand(gpt2: Config, gpt2_shapes: dict[str, tuple[int, ...]]) -> None:
    """Eight devices of 1 TFLOP/s, two machines of four: data over both, fsdp inside one."""
    config, devices = describe.on_mesh(gpt2, "data=2,fsdp=4")
    device = Accelerator(flops=9e12, single=1e12, memory=1e10, near=1e9, far=1e8, machine=4)
    found = make_plan(config, gpt2_shapes, layout(config, devices), device).figures
    assert (devices, config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (8, 2, 4, 1)
    assert found["parameters"] == 124_439_808
    assert found["tokens"] == 524_288
    assert found["compute_seconds"] == pytest.approx(512 * 874_944_921_600 / (8 * 1e12 * 0.5))
    # Matrices are split over four; vectors (biases, and scales and offsets of 25 norms) are whole on each.
    vectors = 12 * (4 * 768 + 3072 + 768) + 25 * 2 * 768
    held = (124_439_808 - vectors) / 4 + vectors
    assert found["state_bytes"] == 12 * held
    assert found["fsdp_bytes"] == pytest.approx(3 * 4 * 124_439_808 * 3 / 4)
    assert found["data_bytes"] == pytest.approx(4 * held)
    assert found["tensor_bytes"] == 0
    assert found["collective_seconds"] == pytest.approx(found["fsdp_bytes"] / 1e9 + found["data_bytes"] / 1e8)
    # Kept: 64 rows a device, of each layer 4 D, 4 H K, 2 F. Whole: the output table, its gradient, two layers.
    kept = 12 * 64 * 1024 * 4 * (4 * 768 + 4 * 768 + 2 * 3072)
    whole = 2 * 4 * 50_257 * 768 + 2 * 4 * (124_439_808 - 50_257 * 768) / 12
    assert found["memory_bytes"] == pytest.approx(16 * held + whole + kept + 2 * 4 * 512 * 50_257)
    assert found["step_seconds"] == found["compute_seconds"]  # it hides the rest
    assert found["mfu"] == pytest.approx(0.5)
    half = make_plan(override(config, {"model.dtype": "bfloat16"}), gpt2_shapes, layout(config, devices), device)
    assert half.figures["compute_seconds"] == pytest.approx(found["compute_seconds"] / 9)


def test_splitting_by_tensor_is_waited_for(gpt2: Config, gpt2_shapes: dict[str, tuple[int, ...]]) -> None:
    config, devices = describe.on_mesh(gpt2, "tensor=4")
    found = make_plan(config, gpt2_shapes, layout(config, devices), ACCELERATORS["h100"]).figures
    stream = 512 * 1024 * 768 * 4
    # 50,257 pieces do not divide by 4: the table is whole, and nothing of the vocabulary is added up.
    assert found["tensor_bytes"] == pytest.approx(4 * 12 * stream * 2 * 3 / 4)
    waited = found["tensor_bytes"] / ACCELERATORS["h100"].near
    assert found["step_seconds"] == pytest.approx(found["compute_seconds"] + waited)


def test_a_vocabulary_that_is_split_is_added_up(gpt2: Config) -> None:
    """One all-reduce where its rows are looked up, one of the features' gradient."""
    config, devices = describe.on_mesh(override(gpt2, {"model.vocab_size": 50_304}), "tensor=4")
    found = make_plan(config, describe.shapes(config), layout(config, devices), ACCELERATORS["h100"]).figures
    assert found["tensor_bytes"] == pytest.approx((4 * 12 + 2) * 512 * 1024 * 768 * 4 * 2 * 3 / 4)


def test_layers_that_are_computed_again(gpt2: Config, gpt2_shapes: dict[str, tuple[int, ...]]) -> None:
    """A third more for the layers, none for the logits; of each layer its input is kept, and one layer whole."""
    config, devices = describe.on_mesh(override(gpt2, {"model.remat": "full"}), "tensor=4")
    found = make_plan(config, gpt2_shapes, layout(config, devices), ACCELERATORS["h100"]).figures
    layers = 291_648_307_200 - 2 * 1024 * 50_257 * 768
    assert found["flops"] == pytest.approx(512 * (874_944_921_600 + layers))
    stream = 512 * 1024 * 768 * 4
    assert found["tensor_bytes"] == pytest.approx(6 * 12 * stream * 2 * 3 / 4)
    kept = 12 * stream + 512 * 1024 * 4 * (4 * 768 + (4 * 768 + 2 * 3072) / 4)
    held = found["state_bytes"] / 12
    assert found["memory_bytes"] == pytest.approx(16 * held + kept + 2 * 4 * 512 * 50_257)


def test_a_ring_leaves_a_machine_over_all_its_links(gpt2: Config, gpt2_shapes: dict[str, tuple[int, ...]]) -> None:
    """Sixteen devices on machines of four: one ring over all of them crosses with four links; four rings, one each."""
    device = Accelerator(flops=1e18, single=1e18, memory=1e10, near=1e9, far=1e8, machine=4)
    seconds = {}
    for mesh in ("data=16", "data=4,fsdp=4"):
        config, devices = describe.on_mesh(gpt2, mesh)
        figures = make_plan(config, gpt2_shapes, layout(config, devices), device).figures
        seconds[mesh] = figures["collective_seconds"] - figures["fsdp_bytes"] / 1e9, figures["data_bytes"]
    assert seconds["data=16"][0] == pytest.approx(seconds["data=16"][1] / 4e8)
    assert seconds["data=4,fsdp=4"][0] == pytest.approx(seconds["data=4,fsdp=4"][1] / 1e8)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "most"), [("tensor 8", 1.5), ("fsdp 8", 1.4), ("data 8", 1.3)])
def test_the_compiled_step_sends_what_the_plan_says(mesh: str, most: float) -> None:
    """On CPUs XLA adds up the gradients of queries, keys and values one by one (6 all-reduces a layer, not 4), has no
    reduce-scatter (twice its bytes), gathers unrolled layers once, and adds up both uses of a tied table."""
    small = {"model.d_model": 64, "model.d_ff": 256, "model.vocab_size": 512, "model.num_layers": 2}
    small |= {"data.max_len": 7, "data.buckets": (7,), "data.batch_tokens": 32 * 7}
    config = on(tiny(**DECODER | small), **MESHES[mesh])
    made = Made(config)
    found = make_plan(config, made.shapes, made.layout, ACCELERATORS["h100"]).figures
    said = found["fsdp_bytes"] + found["data_bytes"] + found["tensor_bytes"]
    sent = sum(one.sent_bytes for one in collectives(made.compiled_text(), 8))
    assert said <= sent <= most * said


def test_accumulation_saves_memory_and_sends_more(gpt2: Config, gpt2_shapes: dict[str, tuple[int, ...]]) -> None:
    config, devices = describe.on_mesh(gpt2, "fsdp=8")
    four = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, accumulate=4))
    one, parts = (
        make_plan(each, gpt2_shapes, layout(each, devices), ACCELERATORS["h100"]).figures for each in (config, four)
    )
    assert parts["fsdp_bytes"] == 4 * one["fsdp_bytes"]
    assert parts["memory_bytes"] < one["memory_bytes"] / 3
    assert parts["flops"] == one["flops"]


def test_where_parameters_lie(gpt2: Config) -> None:
    config, devices = describe.on_mesh(gpt2, "data=32,fsdp=8")
    rows = {path: (split, size) for path, _, split, size in describe.placement(config, devices)}
    assert rows["embedder/table"] == ("fsdp: 768/8", 4 * 50_257 * 96)
    assert rows["decoder/layers_0/feed_forward/inner/kernel"] == ("fsdp: 768/8", 4 * 12 * 96 * 3072)
    assert rows["decoder/final_norm/scale"] == ("whole", 4 * 768)


def test_the_longest_batch_is_that_of_the_pipeline() -> None:
    config = override(Config(), {"data.max_len": 60, "data.batch_tokens": 1000, "data.row_multiple": 4})
    assert longest_batch(config) == (64, 12)


@pytest.mark.parametrize("mesh", ["fsdp", "fsdp=0", "rows=2", "data=2;fsdp=2", "data=-1"])
def test_a_mesh_that_is_none_is_a_sentence(gpt2: Config, mesh: str) -> None:
    with pytest.raises(UserError, match=r"--mesh=.*write data, fsdp or tensor"):
        describe.on_mesh(gpt2, mesh)


def test_rows_that_do_not_divide_are_a_sentence() -> None:
    """The paper's batch is 96 rows."""
    config, devices = describe.on_mesh(load_file(CONFIGS / "paper_big.py"), "data=256")
    with pytest.raises(UserError, match="96 rows of length 256 does not divide over data x fsdp = 256 devices"):
        describe.planned(config, devices, "h100")


def test_what_is_not_known_is_a_sentence(gpt2: Config) -> None:
    with pytest.raises(UserError, match="--plan='b1000' is not known: choose one of a100"):
        describe.planned(gpt2, 1, "b1000")
    with pytest.raises(UserError, match="a plan counts Transformers of texts"):
        step_flops(load_file(CONFIGS / "vit.py"), {}, 1, 1)
