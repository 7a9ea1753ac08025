"""A task of a config alone: without data, tokenizer and parameters."""

import dataclasses
from typing import Any, cast

import jax
import numpy as np

from transformer.config import Config
from transformer.data.tokenizers import TRAINED
from transformer.tasks import task_class


class _Vocabulary:
    """Replaces the tokenizer, which does not exist before training."""

    ends = TRAINED
    pad_id, bos_id, eos_id = ends

    def __init__(self, config: Config):
        self.vocab_size = config.model.vocab_size or config.data.vocab_size


FEWEST_CLASSES = 2  # counted where the number of classes follows from data that are not read


def task_of(config: Config) -> Any:
    """The task of a config, without data; with FEWEST_CLASSES where their number follows from the data."""
    kind = task_class(config.task)
    if kind.has_classes and not config.model.num_classes:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=FEWEST_CLASSES))
    return kind(config, cast(Any, _Vocabulary(config)))


def longest_batch(config: Config) -> tuple[int, int]:
    """(length, rows) of a batch in the longest bucket used."""
    length = min(width for width in config.data.buckets if width >= config.data.max_len)
    multiple = config.data.row_multiple
    return length, max(multiple, config.data.batch_tokens // length // multiple * multiple)


def longest(config: Config, task: Any) -> tuple[int, int]:
    """`longest_batch`, where batches of images and series count rows, and their length is 1."""
    if task.inputs in ("image", "series"):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_len=1, buckets=(1,)))
    return longest_batch(config)


def training_batch(task: Any, rows: int, length: int) -> dict[str, Any]:
    """The shapes of what a training step reads: `Task.example`, and what the loss compares with."""
    batch = jax.eval_shape(lambda: task.example(rows, length))

    def whole(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.int32)

    if task.has_classes:
        return batch | {"labels": whole(rows), "example_ids": whole(rows)}
    if task.inputs == "series":
        targets = jax.ShapeDtypeStruct((rows, task.config.data.horizon, batch["inputs"].shape[2]), np.float32)
        return batch | {"targets": targets, "example_ids": whole(rows)}
    written = batch["target_inputs"] if "target_inputs" in batch else batch["inputs"]
    return batch | {"targets": whole(*written.shape), "target_weights": whole(*written.shape)}
