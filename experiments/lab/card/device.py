"""The device of this process: its data sheet, its memory, and times on it."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from transformer.accelerators.sheets import Sheet, known_flops, sheet_of


def is_toy() -> bool:
    """Whether there is no accelerator, so that sizes are for a test of the program and its figures mean nothing."""
    return jax.default_backend() == "cpu"


def sheet() -> Sheet | None:
    """The data sheet of the device; None where it has none here."""
    return sheet_of(jax.devices()[0].device_kind)


def peak(dtype: str) -> float | None:
    """FLOPs per second of the device by its data sheet; None where it has none here. Nothing is measured in its place:
    a share of what was measured would be no MFU."""
    return known_flops(jax.devices()[0].device_kind, dtype)


def share(flops: float | None, seconds: float, dtype: str) -> float | None:
    """FLOPs over seconds and the peak: MFU, where `flops` are the model's. None without a data sheet."""
    top = peak(dtype)
    return None if top is None or flops is None else flops / seconds / top


def peak_bytes() -> int | None:
    """The most bytes that were held on the device since this process began; None where they are not counted."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def compiled_bytes(compiled: Any) -> int:
    """What the compiler plans for a program: arguments, results and work space, what shares memory counted once."""
    memory = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return taken - memory.alias_size_in_bytes


def compile_all(lowered: Mapping[str, Any]) -> dict[str, Any]:
    """Compiles programs side by side, which is much of the time here: name -> the program, or the exception that its
    compiler raised."""

    def one(program: Any) -> Any:
        try:
            return program.compile()
        except Exception as error:  # a compiler can raise anything
            return error

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(lowered, pool.map(one, lowered.values()), strict=True))


def milliseconds(start: Callable[[], Any], warm_up: int, groups: int, each: int) -> list[float]:
    """Of one call, by groups of `each` calls that are dispatched together, as a loop over steps does, and waited for
    once; `warm_up` calls before them are not timed. `start` returns arrays that its call computes."""
    for _ in range(warm_up):
        jax.block_until_ready(start())
    times = []
    for _ in range(groups):
        began = time.perf_counter()
        for _ in range(each):
            out = start()
        jax.block_until_ready(out)
        times.append(1000 * (time.perf_counter() - began) / each)
    return times


def median(times: list[float]) -> float:
    """The median of times."""
    return float(np.median(times))
