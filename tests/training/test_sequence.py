"""Rows whose positions are split over devices: training, evaluation and generation give what one device gives."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.training.tiny import DECODER, VOCABULARY, Made, on, tiny, train
from transformer.accelerators.program import collectives
from transformer.command_line import parse_mesh
from transformer.config import Config, override
from transformer.errors import UserError
from transformer.model.attention import noted_choices
from transformer.runs import load_run
from transformer.tasks import TASKS
from transformer.tasks.untrained import task_of, training_batch
from transformer.train import train as train_run
from transformer.training.sharding import check_lengths, make_layout

ROWS, LENGTH, STEPS = 8, 32, 3
ENCODER = {"model.family": "encoder_only"}
FRAMES = {"model.inputs": "frames", "model.channels": 4}
WINDOW = {"model.attention": ("window:5",)}  # of 8 devices, each has 4 positions
# Dropout is on. Adam's eps is so large that rounding in a gradient stays rounding in a step, and the activation has no
# kink, where rounding would turn a unit's gradient on or off.
BASE = {
    "model.activation": "gelu",
    "model.num_heads": 4,
    "data.max_len": LENGTH,
    "data.buckets": (LENGTH,),
    "data.row_multiple": ROWS,
    "optimizer.eps": 1e-3,
    "optimizer.warmup_steps": 1,
    "optimizer.learning_rate": 1e-2,
}
# What a model is, and how its attention gets the keys of other devices.
KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "encoder-decoder": ({}, {"ring"}),
    "encoder-decoder, window": (WINDOW, {"halo", "ring"}),
    "contiguous": (DECODER | {"data.name": "text"}, {"ring"}),
    "contiguous, window": (DECODER | WINDOW | {"data.name": "text"}, {"halo"}),
    "packed": (DECODER | {"model.positions": "learned"}, {"ring"}),
    "packed, window": (DECODER | WINDOW | {"model.positions": "rotary", "model.num_kv_heads": 2}, {"halo"}),
    "packed, ALiBi": (DECODER | {"model.positions": "alibi"}, {"ring"}),
    "packed, T5": (DECODER | WINDOW | {"model.positions": "t5"}, {"halo"}),
    "T5": ({"task": "span_corruption", "model.positions": "t5"}, {"ring"}),
    "masked": (ENCODER | {"task": "masked_language_model"}, {"ring"}),
    "classes": (ENCODER | WINDOW | {"task": "text_classification", "model.num_classes": 3}, {"halo"}),
    "image": (ENCODER | {"task": "image_classification", "model.num_classes": 3, "model.inputs": "image",
                         "model.image_size": (8, 16)}, {"ring"}),
    "speech": (FRAMES | {"task": "speech_recognition"}, {"ring"}),
    "sounds": (ENCODER | FRAMES | {"task": "speech_classification", "model.num_classes": 3}, {"ring"}),
    "series": ({"task": "forecasting", "model.family": "forecaster", "model.inputs": "series",
                "model.patch_size": 8, "model.patch_stride": 4, "data.horizon": 5}, {"ring"}),
}  # fmt: skip


def _config(kind: str, **changes: Any) -> Config:
    return tiny(**BASE | KINDS[kind][0] | changes)


def _packing(random: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments: three documents a row, across the borders of devices, then padding."""
    positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row in range(1, shape[0]):
        begin = 0
        for document, end in enumerate(sorted(random.choice(np.arange(1, shape[1]), 3, replace=False)), 1):
            positions[row, begin:end], segments[row, begin:end] = np.arange(end - begin), document
            begin = end
    return positions, segments


def _batch(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Random numbers in the arrays that a step of this task reads; the first row is padding only."""
    random = np.random.default_rng(seed)
    shapes = training_batch(task_of(config), ROWS, LENGTH)
    batch: dict[str, np.ndarray] = {}
    for name, like in shapes.items():
        side, _, what = name.rpartition("_")
        if what == "lengths":
            longest = shapes["targets" if side == "target" else "inputs"].shape[1]
            batch[name] = np.append(0, random.integers(1, longest + 1, ROWS - 1)).astype(np.int32)
        elif what == "positions":
            batch[name], batch[f"{side}_segments"] = _packing(random, like.shape)
        elif name == "example_ids":
            batch[name] = np.arange(-1, ROWS - 1, dtype=np.int32)
        elif like.dtype == np.int32 and what != "segments":
            most = {"labels": 3, "target_weights": 2}.get(name, VOCABULARY)
            batch[name] = random.integers(0, most, like.shape).astype(np.int32)
        elif like.dtype == np.float32:
            batch[name] = random.normal(size=like.shape).astype(np.float32)
    assert batch.keys() == shapes.keys()
    return batch


@functools.cache
def _trained(config: Config) -> tuple[Any, np.ndarray, set[str]]:
    """Parameters, losses, and how attention was computed."""
    with noted_choices() as choices:
        state, lines = train(config, STEPS, lambda seed: _batch(config, seed))
    return jax.device_get(state.params), lines, {choice.backend for choice in choices} & {"halo", "ring"}


def _differences(config: Config, mesh: dict[str, int], kinds: set[str]) -> tuple[float, float]:
    """Of a mesh from one device: the largest of the losses, relative, and of the parameters."""
    params, lines, alone = _trained(on(config, data=1))
    split_params, split_lines, used = _trained(on(config, **{"data": 1} | mesh))
    assert alone == set()
    assert used == kinds
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(split_params), strict=True)
    return float(np.abs(split_lines / lines - 1).max()), max(float(np.abs(x - y).max()) for x, y in pairs)


# --- The same numbers


SLOW = pytest.mark.slow
QUICK = {"encoder-decoder, window": 4, "contiguous, window": 8, "packed": 8, "classes": 4, "image": 8}
ON_ALL = ("encoder-decoder, window", "packed", "packed, window", "masked")  # numbers of devices; the others on one
CASES = [
    pytest.param(kind, devices, marks=[] if QUICK.get(kind) == devices else SLOW)
    for kind in KINDS
    for devices in ((2, 4, 8) if kind in ON_ALL else (QUICK.get(kind, 8),))
]


@pytest.mark.parametrize(("kind", "devices"), CASES)
def test_the_same_losses_and_parameters_on_any_number_of_devices(kind: str, devices: int) -> None:
    losses, parameters = _differences(_config(kind), {"sequence": devices}, KINDS[kind][1])
    assert losses < 1e-5
    assert parameters < 2e-6


def test_every_task_is_here() -> None:
    """Summaries are trained as translations are, and prompts as language models."""
    assert {_config(kind).task for kind in KINDS} == TASKS.keys() - {"summarization", "prompts"}


# --- Pairs


SCANNED = {"model.scan_layers": True, "model.num_layers": 2}


@pytest.mark.parametrize(
    ("kind", "changes", "mesh"),
    [
        pytest.param("packed", {}, {"data": 2, "sequence": 4}, marks=SLOW),
        ("packed", {}, {"fsdp": 4, "sequence": 2}),
        pytest.param("packed", {}, {"sequence": 2, "tensor": 4}, marks=SLOW),
        ("packed, window", {}, {"fsdp": 2, "sequence": 2, "tensor": 2}),
        # Gradients are added once over "data", around micro-batches whose attention goes over "sequence"; but not with
        # a third axis. The learned table is split over "fsdp", that of the vocabulary over "tensor".
        ("packed, T5", {}, {"data": 2, "sequence": 4, "accumulate": 2}),
        ("packed", {}, {"data": 2, "fsdp": 2, "sequence": 2, "accumulate": 2}),
        pytest.param("packed, T5", {}, {"data": 2, "sequence": 2, "tensor": 2, "accumulate": 2}, marks=SLOW),
        pytest.param("T5", {}, {"data": 2, "sequence": 4, "accumulate": 4}, marks=SLOW),
        pytest.param("encoder-decoder, window", {}, {"data": 4, "sequence": 2, "accumulate": 2}, marks=SLOW),
        pytest.param("packed", {}, {"fsdp": 2, "sequence": 4, "accumulate": 4}, marks=SLOW),
        ("packed, window", SCANNED | {"model.remat": "full"}, {"sequence": 4}),
        pytest.param("packed", SCANNED, {"fsdp": 4, "sequence": 2}, marks=SLOW),
        pytest.param("T5", SCANNED | {"model.remat": "attention"}, {"sequence": 4}, marks=SLOW),
        pytest.param("packed", {"model.remat": "dots"}, {"sequence": 4}, marks=SLOW),
        pytest.param("packed, window", {"model.remat": "attention"}, {"sequence": 4}, marks=SLOW),
        # 24 tokens in 32 rows of a table: the last device of "tensor" has none. Losses are smoothed, here and above.
        ("contiguous", {"model.vocab_multiple": 32, "label_smoothing": 0.2}, {"sequence": 2, "tensor": 4}),
        pytest.param("packed", {"label_smoothing": 0.0}, {"sequence": 4}, marks=SLOW),
    ],
)  # fmt: skip
def test_with_all_else_that_a_step_does(kind: str, changes: dict[str, Any], mesh: dict[str, int]) -> None:
    losses, parameters = _differences(_config(kind, **changes), mesh, KINDS[kind][1])
    assert losses < 1e-5
    assert parameters < 2e-6


@pytest.mark.slow
def test_gradients_are_added_once_over_data_where_positions_are_split() -> None:
    config = on(_config("packed, window"), data=2, sequence=4, accumulate=4)
    made = Made(config)
    state = made.layout.abstract(jax.eval_shape(made.create, np.uint32(0)))
    text = made.step.jitted.lower(state, _batch(config, 0), np.uint32(0)).compile().as_text()
    over_data = [one for one in collectives(text, 8) if one.kind == "all-reduce" and one.devices == 2]
    added = [one for one in over_data if one.result_bytes > 32]  # metrics are less
    held = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    assert {one.times for one in added} == {1}
    assert held <= sum(one.result_bytes for one in added) <= held + 32


def test_dropout_is_in_these_losses() -> None:
    """Otherwise they would agree, even if each device drew the mask of the first positions."""
    wet, dry = (_trained(on(_config("packed", **changes), data=1))[1] for changes in ({}, {"model.dropout": 0.0}))
    assert np.abs(dry / wet - 1).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["packed", "packed, window", "encoder-decoder, window"])
def test_bfloat16_differs_by_its_rounding(kind: str) -> None:
    """Its numbers have 8 bits. Rows that are split differ from one device as much as that."""
    losses, parameters = _differences(_config(kind, **{"model.dtype": "bfloat16"}), {"sequence": 4}, KINDS[kind][1])
    assert losses < 1e-3
    assert parameters < BASE["optimizer.learning_rate"]


# --- What was trained so is used


def _written(folder: Path, **changes: Any) -> tuple[Path, float]:
    """A run of two steps whose positions are split over two devices, and its validation loss."""
    random = np.random.default_rng(0)
    words = ["one", "two", "three", "six"]
    for split, count in (("train", 40), ("dev", 10), ("validation", 10), ("test", 10)):
        texts = [" ".join(random.choice(words, random.integers(2, 6))) for _ in range(count)]
        (folder / f"{split}.en").write_text("\n".join(texts) + "\n")
        (folder / f"{split}.tsv").write_text("\n".join(f"{text}\t{int('six' in text)}" for text in texts) + "\n")
    small = {
        "steps": 2, "label_smoothing": 0.0, "model.vocab_size": 0, "data.dir": str(folder),
        "data.cache": str(folder / "cache"), "data.vocab_size": 300, "data.batch_tokens": 256, "data.source": "",
    }  # fmt: skip
    config = on(tiny(**BASE | small), data=1, sequence=2)
    metrics = train_run(override(config, changes), folder / "run", quiet=True)
    return folder / "run", metrics["loss"]


def test_a_language_model_is_evaluated_on_a_mesh_and_writes_without(tmp_path: Path) -> None:
    workdir, loss = _written(tmp_path, **DECODER | {"data.name": "files", "data.target": "en"})
    alone, split = load_run(workdir), load_run(workdir, mesh=parse_mesh("sequence=2,tensor=2"))
    found = alone.evaluate("validation")
    with noted_choices() as choices:
        np.testing.assert_allclose(split.evaluate("validation")["loss"], found["loss"], rtol=1e-5)
    assert {choice.backend for choice in choices} == {"ring"}
    np.testing.assert_allclose(loss, found["loss"], rtol=1e-5)
    assert len(alone.generate(["one two"], max_new=3)) == 1
    with pytest.raises(UserError, match=r"mesh\.sequence=2 splits the positions .*: leave sequence out of --mesh"):
        split.generate(["one two"])


@pytest.mark.slow
def test_a_classifier_of_texts_is_used_on_a_mesh_and_without(tmp_path: Path) -> None:
    data = {"task": "text_classification", "data.name": "sst2", "data.target": "text", "data.tokenizer": "words"}
    workdir, loss = _written(tmp_path, **ENCODER | {"model.num_classes": 2} | data)
    alone, split = load_run(workdir), load_run(workdir, mesh=parse_mesh("data=2,sequence=4"))
    found = alone.evaluate("validation")
    on_mesh = split.evaluate("validation")
    assert {key: on_mesh.pop(key) for key in ("split", "step")} == {key: found.pop(key) for key in ("split", "step")}
    assert on_mesh == pytest.approx(found, rel=1e-5)
    np.testing.assert_allclose(loss, found["loss"], rtol=1e-5)
    assert split.generate(["one two six", "two"]) == alone.generate(["one two six", "two"])


# --- Bad input


@pytest.mark.parametrize("family", ["recurrent_encoder_decoder", "recurrent_language_model"])
def test_a_recurrent_family_refuses_in_a_sentence(family: str) -> None:
    with pytest.raises(UserError, match=rf"mesh\.sequence=2 .* model\.family='{family}' reads them one after another"):
        make_layout(on(tiny(**{"model.family": family}), data=1, sequence=2))


UNEVEN = {
    "contiguous": {"data.max_len": 9, "data.buckets": (9,)},
    "image": {"model.pooling": "first"},
    "speech": {"data.max_len": 33, "data.buckets": (33,)},
    "sounds": {"data.max_len": 36, "data.buckets": (36,)},
    "series": {"model.patch_size": 4},
}


@pytest.mark.parametrize("kind", UNEVEN)
def test_positions_that_do_not_divide_are_a_sentence(kind: str) -> None:
    """Before a run begins, by reckoning; and from the model, for whoever calls it by themselves."""
    config = on(_config(kind, **UNEVEN[kind]), data=1, sequence=2)
    task, layout = task_of(config), make_layout(config)
    widths = [config.data.max_len]
    with pytest.raises(
        UserError, match=r"a batch of 8 rows of 9 positions does not divide over mesh\.sequence=2: make"
    ):
        check_lengths(layout, [(ROWS, *task.positions(widths))])
    params = jax.eval_shape(task.init, jax.random.key(0))
    with (
        layout.tracing(),
        pytest.raises(UserError, match=r"a row of 9 positions does not divide over mesh\.sequence=2"),
    ):
        jax.eval_shape(task.loss, params, training_batch(task, ROWS, *widths))


def test_a_run_does_not_begin_with_lengths_that_do_not_divide(tmp_path: Path) -> None:
    uneven = {"data.name": "files", "data.target": "en", "data.max_len": 30, "data.buckets": (30,)}
    with pytest.raises(UserError, match=r"a batch of 8 rows of 30 positions does not divide over mesh\.sequence=4"):
        _written(tmp_path, **DECODER | uneven | {"mesh.sequence": 4})
    assert not (tmp_path / "run" / "config.json").exists()
