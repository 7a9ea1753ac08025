"""What describe says of a training step, and the step itself: traced with the batches, task and layout of `train`."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.test_tasks import configured
from transformer.config import Config, override
from transformer.data.sources import load_source, series
from transformer.data.tokenizers.training import load_or_train
from transformer.describe import backends, shapes, step_figures
from transformer.errors import UserError
from transformer.model.attention import noted_choices
from transformer.model.layers import MultiHeadAttention
from transformer.tasks import task_class
from transformer.training import optim, sharding, step

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pairs on two devices": (
        "translation",
        {"model.num_heads": 4, "model.num_kv_heads": 2, "model.value_dim": 3, "mesh.data": 2, "mesh.accumulate": 2,
         "model.dtype": "bfloat16", "data.row_multiple": 4, "model.vocab_size": 320},
    ),
    "windows, scanned": (
        "language_model",
        {"model.attention": ("window:8", "full"), "model.num_layers": 4, "model.scan_layers": True,
         "model.remat": "full", "model.head_dim": 6, "data.max_len": 2048, "data.buckets": (2048,),
         "data.batch_tokens": 16384, "model.vocab_size": 320, "model.positions": "rotary", "mesh.data": 8},
    ),
    "packed": ("masked_language_model", {"mesh.fsdp": 2, "model.vocab_size": 320}),
    "images": ("image_classification", {"mesh.data": 4, "data.batch_tokens": 500}),
    "a series": ("forecasting", {"mesh.data": 4}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_what_was_described(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "ETT_ROWS", {"train": 100, "validation": 30, "test": 30})
    task_name, changes = CASES[case]
    config = configured(task_name, tmp_path, **changes)
    source = load_source(config.data)
    kind, tokenizer = task_class(config.task), None
    config = kind.completed(config, source)
    if kind.reads_text:
        fields, extra = kind.fields(config, source), kind.extra_pieces(config)
        tokenizer = load_or_train(source, config.data, fields, extra)
    task = kind(config, tokenizer)
    layout = sharding.make_layout(dataclasses.replace(config, model=task.model_config), axes=task.axes)
    training = task.batches(source, "train")
    rows, length = max(training.report["shapes"], key=lambda shape: shape[1])[:2]
    batches = (training.batch(number) for number in range(training.steps_per_epoch))
    tokens = "targets" if task_name in ("translation", "language_model", "masked_language_model") else "inputs"
    batch = next(batch for batch in batches if batch[tokens].shape[0] == rows)
    optimizer = optim.make_optimizer(config, task.axes)
    state = jax.eval_shape(step.make_init(task.init, optimizer, layout), np.uint32(0))
    calls: list[Any] = []

    def listen(call: Any, arguments: Any, told: Any, context: Any) -> Any:
        if isinstance(context.module, MultiHeadAttention) and context.method_name == "heads":
            calls.append(arguments[:2])
        return call(*arguments, **told)

    train_step = step.make_train_step(task.loss, optimizer, layout, config.mesh.accumulate)
    with noted_choices() as choices, nn.intercept_methods(listen):
        jax.eval_shape(train_step, state, batch, np.uint32(0))

    figures, (q, keys) = step_figures(config), calls[0]
    assert sum(math.prod(shape) for shape in shapes(config).values()) == sum(
        x.size for x in jax.tree.leaves(state.params)
    )
    assert figures["rows"] == rows
    at_once = rows // config.mesh.accumulate
    # Micro-batches are computed by each place on "data" by itself, so that attention is called with a part of the rows.
    places = config.mesh.data if config.mesh.accumulate > 1 else 1
    assert places * q.shape[0] == at_once * (batch["inputs"].shape[2] if task_name == "forecasting" else 1)
    assert figures["rows of a device at a time"] == layout.rows.shard_shape((at_once,))[0]
    if "length" in figures:
        assert (figures["length"], figures["positions of a step"]) == (length, batch[tokens].size)
    assert (figures["heads"], figures["width of a head"]) == q.shape[2:]
    assert figures["heads of keys and values"] == keys.k.shape[2] == keys.v.shape[2]
    assert figures["width of its values"] == keys.v.shape[3]
    assert figures["model.dtype"] == q.dtype.name
    assert figures["model.family"] == task.model.config.family
    assert figures["mesh"] == ", ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    if kind.reads_text:
        assert figures["vocabulary"] == state.params["params"]["embedder"]["table"].shape[0]
    header, *lines = backends(config)
    assert header.startswith(f"attention of {at_once} rows")
    assert len(lines) == config.model.num_layers * (3 if task_name == "translation" else 1)
    assert {line.split(", ", 1)[1] for line in lines} == {f"{choice.backend}: {choice.reason}" for choice in choices}
    if case.startswith("windows"):
        assert {line.split(":")[1].split(",")[0].strip() for line in lines} == {"window 8", "full"}
        assert len({choice.backend for choice in choices}) == 2


def test_a_mesh_of_more_devices_than_are_here() -> None:
    """All devices that are here, or as many as the config names; what does not divide is refused, as in training."""
    config = override(
        Config(), {"model.vocab_size": 64, "model.num_heads": 16, "model.num_layers": 1, "data.row_multiple": 64}
    )
    assert step_figures(config)["mesh"] == f"data={len(jax.devices())}, fsdp=1, sequence=1, tensor=1"
    many = override(config, {"mesh.data": 1, "mesh.fsdp": 64, "mesh.tensor": 16})
    assert step_figures(many)["mesh"] == "data=1, fsdp=64, sequence=1, tensor=16"
    assert step_figures(many)["rows of a device at a time"] == 1
    assert len(backends(many)) == 1 + 3
    with pytest.raises(UserError, match="a batch of 64 rows of length 256 does not divide over data x fsdp = 128"):
        step_figures(override(config, {"mesh.data": 128}))
    with pytest.raises(UserError, match=r"model\.num_heads=16 does not divide over mesh\.tensor=3"):
        step_figures(override(config, {"mesh.data": 1, "mesh.tensor": 3}))
