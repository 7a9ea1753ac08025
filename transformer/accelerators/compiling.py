"""Training steps compiled for accelerators that are not here."""

import contextlib
import dataclasses
import functools
import math
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from transformer.accelerators import topologies
from transformer.accelerators.program import Program, read
from transformer.accelerators.roofline import Bound, bound
from transformer.accelerators.topologies import Topology
from transformer.config import Config, parse_pattern
from transformer.errors import UserError
from transformer.tasks.untrained import longest, task_of, training_batch
from transformer.training import optim, sharding, step
from transformer.training.sharding import Layout

# GPU kernels are not timed, as there is none to run them.
_OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_autotune_level": 0}, "tpu": {}}


class Memory(NamedTuple):
    """Bytes of one device."""

    held: int  # parameters, optimizer's state and batch
    work: int
    available: float

    @property
    def needed(self) -> int:
        return self.held + self.work


class TooLarge(UserError):
    """A step needs more memory than a device has."""

    def __init__(self, sentence: str, share: float):
        super().__init__(sentence)
        self.share = share  # what it needs of what there is, above 1


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled training step of the longest batch."""

    config: Config
    topology: Topology
    layout: Layout
    rows: int
    length: int
    text: str  # of the program
    memory: Memory
    seconds: float  # that compiling took

    @functools.cached_property
    def program(self) -> Program:
        return read(self.text, self.layout.mesh.size, functools.partial(seen, self.config, self.length))

    @functools.cached_property
    def bound(self) -> Bound:
        return bound(self.program, self.topology.sheet)

    @property
    def at_once(self) -> int:
        """Rows that a device computes at a time."""
        return rows_at_once(self.layout, self.rows, self.config.mesh.accumulate)


def layout_on(config: Config, task: Any, topology: Topology) -> Layout:
    """The layout of `config.mesh` over the devices of a topology. UserError: it does not take all of them."""
    layout = sharding.make_layout(
        dataclasses.replace(config, model=task.model_config), len(topology.devices), task.axes
    )
    sizes = dict(layout.mesh.shape)
    if layout.mesh.size != len(topology.devices):
        named = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UserError(
            f"the mesh {named} takes {layout.mesh.size} of the {len(topology.devices)} devices of {topology.name}: "
            "choose sizes that they can be divided into"
        )
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=layout.mesh.axis_types, devices=list(topology.devices)
    )
    return dataclasses.replace(layout, mesh=mesh)


def lower(config: Config, task: Any, layout: Layout, rows: int, length: int) -> Any:
    """The training step of a batch on a mesh, traced and ready to be compiled. UserError: the rows do not divide."""
    sharding.check_rows(layout, [(rows, length)], config.mesh.accumulate)
    optimizer = optim.make_optimizer(config, task.axes)
    state = layout.abstract(jax.eval_shape(step.make_init(task.init, optimizer, layout), np.uint32(0)))
    train_step = step.make_train_step(task.loss, optimizer, layout, config.mesh.accumulate, config.optimizer.max_spike)
    batch = training_batch(task, rows, length)
    return cast(Any, train_step).lower(state, batch, jax.ShapeDtypeStruct((), np.uint32))


def compile_step(config: Config, topology: str | Topology) -> Step:
    """The training step of the longest batch, compiled for the devices of a topology such as "v5e:4x4" with
    `config.mesh`. Takes seconds to minutes, and none of the devices. TooLarge: a device has too little memory.
    UserError: an unknown topology, a compiler that is not installed, or a mesh that does not fit."""
    topology = topologies.load(topology) if isinstance(topology, str) else topology
    task = task_of(config)
    layout, (length, rows) = layout_on(config, task, topology), longest(config, task)
    began, available = time.monotonic(), topology.sheet.memory
    with topologies.quiet(), not_cached():
        lowered = lower(config, task, layout, rows, length)
        at_once = rows_at_once(layout, rows, config.mesh.accumulate)
        try:
            compiled = lowered.compile(compiler_options=_OPTIONS[topology.devices[0].platform])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise _too_large(*_gigabytes(str(error)), at_once, topology.chip) from error
    found = compiled.memory_analysis()
    memory = Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, available)
    if memory.needed > available:  # for a GPU the compiler does not refuse
        raise _too_large(memory.needed / 1e9, available / 1e9, at_once, topology.chip)
    seconds = time.monotonic() - began
    return Step(config, topology, layout, rows, length, compiled.as_text(), memory, seconds)


def largest(config: Config, topology: Topology, failed: TooLarge) -> Step | None:
    """The step with the fewest micro-batches that fits where `failed` did not; None: not even with one row of a device
    at a time. Each try is compiled."""
    task = task_of(config)
    layout, (_, rows) = layout_on(config, task, topology), longest(config, task)
    most = rows_at_once(layout, rows, 1)
    accumulate = config.mesh.accumulate
    while accumulate < most:
        wanted = accumulate * max(2.0, failed.share)
        accumulate = next(
            parts for parts in range(accumulate + 1, most + 1) if most % parts == 0 and (parts >= min(wanted, most))
        )
        try:
            mesh = dataclasses.replace(config.mesh, accumulate=accumulate)
            return compile_step(dataclasses.replace(config, mesh=mesh), topology)
        except TooLarge as again:
            failed = again
    return None


def instead(config: Config, topology: Topology, failed: TooLarge) -> str:
    """What fits in place of a step that does not, as a part of a sentence."""
    step = largest(config, topology, failed)
    if step is None:
        more = "" if config.model.remat == "full" else ", or set model.remat=full"
        return f"not even one row at a time fits: split the parameters (mesh.fsdp, mesh.tensor){more}"
    return (
        f"{step.at_once} rows at a time fit, with mesh.accumulate={step.config.mesh.accumulate}, in "
        f"{step.memory.needed / 1e9:.1f} GB"
    )


def rows_at_once(layout: Layout, rows: int, accumulate: int) -> int:
    """Rows of a batch that one device computes at a time."""
    return layout.rows.shard_shape((rows,))[0] // accumulate


def seen(config: Config, length: int, source: str) -> float:
    """The least share of its scores that an attention of the model computes, by where in the program it is called."""
    causal = config.model.family != "encoder_only" and not re.search(r"encoder/|cross_attention", source)
    shares = []
    for pattern in config.model.attention:
        window = length if (parsed := parse_pattern(pattern)) is None else parsed
        at = np.arange(length)
        keys = 1 + np.minimum(at, window) + (0 if causal else np.minimum(length - 1 - at, window))
        shares.append(float(keys.mean()) / length)
    return 1.0 if "cross_attention" in source else min(shares)


@contextlib.contextmanager
def not_cached() -> Iterator[None]:
    """Programs for other machines are not kept on disk, from where they cannot be loaded here."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _too_large(needed: float, available: float, at_once: int, chip: str) -> TooLarge:
    """`needed` and `available` in GB, NaN where the compiler does not say."""
    named = f"{'a' if chip.startswith('v') else 'an'} {chip}"
    if math.isnan(needed):
        return TooLarge(f"{named} has too little memory for {at_once} rows at a time", 1.0)
    sentence = f"a device needs {needed:.1f} GB with {at_once} rows at a time, and {named} has {available:.1f} GB"
    return TooLarge(sentence, needed / available if available else math.inf)


def _gigabytes(message: str) -> tuple[float, float]:
    """(needed, available) of an error of a TPU's compiler: "temporaries (26.79G) exceeds available HBM (15.75G)", or
    "Used 93.80G of 15.75G hbm"."""
    powers = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = [float(number) * powers[unit] / 1e9 for number, unit in re.findall(r"([\d.]+)([KMGT])\b", message)]
    return (found[0], found[1]) if len(found) > 1 else (math.nan, math.nan)
