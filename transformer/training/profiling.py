"""The cost of a compiled step, and the peak of the devices."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer.accelerators.sheets import known_flops

# Side of the square matrices that measure a peak: a tenth of a second in all on one core, or on an accelerator.
SIDE = {"cpu": 512, "other": 4096}


class Cost(NamedTuple):
    """The cost of a step over a batch of one shape. `flops` is XLA's count for the compiled program, on all devices
    together. It counts the body of a loop once, so the layers of `model.scan_layers`, micro-batches, and the slices of
    the loss are undercounted; kernels that are opaque to XLA count nothing. `model_flops` is the formula of
    `flops.step_flops`, which includes all of these, and nothing twice (`model.remat`); None where it is unknown."""

    flops: float
    model_flops: float | None
    memory_bytes: int  # of one device: what the program reads, writes and works with


class Program:
    """A jitted step, compiled once for each shape of a batch, with the cost of each program. `formula` gives a batch's
    FLOPs, or None."""

    def __init__(self, jitted: Any, devices: int, formula: Callable[[Mapping[str, Any]], float | None]):
        self.jitted, self.devices, self.formula = jitted, devices, formula
        self._programs: dict[Any, tuple[Any, Cost]] = {}

    def __call__(self, state: Any, batch: Mapping[str, Any], seed: Any) -> Any:
        shapes = _shapes(batch)
        if shapes not in self._programs:
            compiled = self.jitted.lower(state, batch, seed).compile()
            self._programs[shapes] = compiled, self._cost(compiled, batch)
        return self._programs[shapes][0](state, batch, seed)

    def cost(self, batch: Mapping[str, Any]) -> Cost:
        return self._programs[_shapes(batch)][1]

    def _cost(self, compiled: Any, batch: Mapping[str, Any]) -> Cost:
        flops = float((compiled.cost_analysis() or {}).get("flops", 0.0)) * self.devices
        memory = compiled.memory_analysis()
        taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return Cost(flops, self.formula(batch), taken - memory.alias_size_in_bytes)


def _shapes(batch: Mapping[str, Any]) -> Any:
    return tuple((name, array.shape) for name, array in batch.items())


def memory_in_use() -> int | None:
    """The peak of bytes held on a device of this process; None where it is not counted (a CPU)."""
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((number for number in held if number is not None), default=None)


@functools.cache
def peak_flops(mesh: Mesh, dtype: str) -> float:
    """The peak FLOPs per second of one device: from its data sheet (`accelerators.sheets`) if it has one there,
    or else measured as the fastest of ten products of square matrices on all devices at once, so that simulated
    devices, which share the cores, share their peak."""
    device = mesh.devices.flat[0]
    if (known := known_flops(device.device_kind, dtype)) is not None:
        return known
    side = SIDE.get(device.platform, SIDE["other"])
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    matrices = jax.jit(lambda: jnp.ones((mesh.size, side, side), dtype), out_shardings=split)()
    product = jax.jit(lambda x: x @ x, in_shardings=split, out_shardings=split)
    jax.block_until_ready(product(matrices))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(product(matrices))
        seconds.append(time.perf_counter() - began)
    return 2.0 * side**3 / min(seconds)
