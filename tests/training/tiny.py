"""A tiny translation model and ragged batches, for the tests of training and the programs that they start."""

import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from tensorboardX.proto.event_pb2 import Event

from transformer.config import Config, override
from transformer.tasks import TASKS
from transformer.training import sharding
from transformer.training.flops import batch_flops
from transformer.training.optim import make_optimizer
from transformer.training.profiling import Program
from transformer.training.step import State, make_init, make_train_step

VOCABULARY = 24
ROWS = 32  # over 8 devices and 4 micro-batches


# Half as much to compile as an encoder and a decoder.
DECODER = {"task": "language_model", "model.family": "decoder_only"}


def tiny(**changes: Any) -> Config:
    """One layer that divides over 8 devices along every axis, dropout on; Adam's eps is 1e-6."""
    return override(
        Config(),
        {
            "model.num_layers": 1,
            "model.d_model": 16,
            "model.d_ff": 32,
            "model.num_heads": 8,
            "model.vocab_size": VOCABULARY,
            "model.dropout": 0.3,
            "optimizer.warmup_steps": 10,
            "optimizer.learning_rate": 3e-3,
            "optimizer.eps": 1e-6,
            "data.row_multiple": ROWS,
        }
        | changes,
    )


def ragged(seed: int, rows: int = ROWS, length: int = 7, vocabulary: int = VOCABULARY) -> dict[str, np.ndarray]:
    """Pairs of 0 to 7 tokens; the first rows, more than one device of eight holds, are padding only."""
    random = np.random.default_rng(seed)
    batch: dict[str, np.ndarray] = {}
    for ids, side in (("inputs", "input"), ("targets", "target")):
        lengths = random.integers(1, length + 1, rows)
        lengths[: rows // 6] = 0
        segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
        batch[ids] = random.integers(3, vocabulary - 1, (rows, length)).astype(np.int32) * segments
        batch[f"{side}_segments"] = segments
        batch[f"{side}_positions"] = np.arange(length, dtype=np.int32) * segments
    shifted = np.concatenate([np.ones((rows, 1), np.int32), batch["targets"][:, :-1]], axis=1)
    batch["target_inputs"] = shifted * batch["target_segments"]
    return batch


MESHES: dict[str, dict[str, Any]] = {
    "data 2": {"data": 2},
    "data 4": {"data": 4},
    "data 8": {"data": 8},
    "fsdp 2": {"data": 1, "fsdp": 2},
    "fsdp 4": {"data": 1, "fsdp": 4},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "fsdp 2 x 4": {"data": 2, "fsdp": 4},
    "tensor 2": {"data": 1, "tensor": 2},
    "tensor 4": {"data": 1, "tensor": 4},
    "tensor 8": {"data": 1, "tensor": 8},
    "tensor 2 x 4": {"data": 2, "tensor": 4},
    "fsdp_tensor 1 x 2 x 2": {"data": 1, "fsdp": 2, "tensor": 2},
    "fsdp_tensor 2 x 2 x 2": {"data": 2, "fsdp": 2, "tensor": 2},
}


def on(config: Config, **mesh: Any) -> Config:
    return override(config, {f"mesh.{key}": value for key, value in mesh.items()})


def copied(seed: int) -> dict[str, np.ndarray]:
    """Ragged pairs whose target is the input: something to learn, so that what differs in one step may grow."""
    batch = ragged(seed)
    batch |= {"targets": batch["inputs"]}
    batch |= {f"target_{what}": batch[f"input_{what}"] for what in ("segments", "positions")}
    shifted = np.concatenate([np.ones((ROWS, 1), np.int32), batch["targets"][:, :-1]], axis=1)
    return batch | {"target_inputs": shifted * batch["target_segments"]}


class Made:
    """A configuration's layout and compiled functions; nothing runs yet."""

    def __init__(self, config: Config):
        size = SimpleNamespace(vocab_size=config.model.vocab_size)
        self.task = TASKS[config.task](config, size)  # type: ignore[arg-type]
        self.layout = sharding.make_layout(config, axes=self.task.axes)
        optimizer = make_optimizer(config, self.task.axes)
        self.create = make_init(self.task.init, optimizer, self.layout)
        spike = config.optimizer.max_spike
        jitted = make_train_step(self.task.loss, optimizer, self.layout, config.mesh.accumulate, spike)
        self.shapes = sharding.shapes(jax.eval_shape(self.create, np.uint32(0)).params["params"])
        self.step = Program(jitted, self.layout.mesh.size, partial(batch_flops, config, self.shapes))

    def compiled_text(self, batch: Any = None) -> str:
        """The compiled step, by default over `ragged(0)`."""
        state = self.layout.abstract(jax.eval_shape(self.create, np.uint32(0)))
        batch = ragged(0) if batch is None else batch
        return self.step.jitted.lower(state, batch, np.uint32(0)).compile().as_text()


def train(config: Config, steps: int, batch: Any = ragged) -> tuple[State, np.ndarray]:
    """The state after some steps over the batches of seeds 0, 1, ..., and the loss of each step."""
    made = Made(config)
    state, lines = made.create(np.uint32(config.seed)), []
    for number in range(steps):
        state, metrics = made.step(state, made.layout.place(batch(number)), np.uint32(config.seed))
        lines.append(jax.device_get(metrics["loss"]))
    return state, np.array([total / weight for total, weight in lines], np.float64)


# --- TensorBoard's events


def crc32c(data: bytes) -> int:
    """Castagnoli's polynomial bit by bit, then as TensorFlow masks it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def points(workdir: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of the one event file, every checksum looked at."""
    (path,) = workdir.glob("*tfevents*")
    data, at, points = path.read_bytes(), 0, []
    while at < len(data):
        length, check = struct.unpack_from("<QI", data, at)
        event = data[at + 12 : at + 12 + length]
        assert check == crc32c(data[at : at + 8])
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == crc32c(event)
        read = Event.FromString(event)
        points += [(value.tag, read.step, value.simple_value) for value in read.summary.value]
        at += 16 + length
    return points
