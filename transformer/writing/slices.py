"""Slices of fixed shape: their widths, their rows, and how many are decoded in parallel."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

# Rows and positions of a slice on one device; longer inputs have fewer rows. A single line costs as much as a whole
# slice: more rows would be faster for long files, and slower for short ones.
ROWS, POSITIONS = 16, 4096
MOST_AT_ONCE = 4  # parallel slices, each with its own cache


def rows_of(width: int) -> int:
    """Rows of a slice of this width on one device."""
    return max(1, min(ROWS, POSITIONS // width))


def width_of(length: int, buckets: Sequence[int], limit: int | None) -> int:
    """The padded length of an input: a bucket, or a multiple of the last one; at most the model's limit."""
    fitting = [width for width in sorted(buckets) if width >= length]
    width = fitting[0] if fitting else -(-length // max(buckets)) * max(buckets)
    return width if limit is None else min(width, limit)


def slices(
    numbers: Sequence[int], ids: Mapping[int, Any] | Sequence[Any], width: int, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The slices of the inputs with these numbers: padded tokens [rows, width] int32, or arrays [rows, width, ...] of
    inputs [length, ...]; lengths [rows] and numbers [rows]. Unused rows repeat the first, so that they end when it
    does."""
    for start in range(0, len(numbers), rows):
        chunk = list(numbers[start : start + rows])
        chunk += chunk[:1] * (rows - len(chunk))
        first = ids[chunk[0]]
        kind = first.dtype if isinstance(first, np.ndarray) else np.int32
        batch = np.zeros((rows, width, *np.shape(first)[1:]), kind)
        for row, number in enumerate(chunk):
            batch[row, : len(ids[number])] = ids[number]
        yield batch, np.array([len(ids[number]) for number in chunk], np.int32), np.array(chunk, np.int32)


def side_by_side(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], threads: int) -> list[Any]:
    """`function(*job)` of each job, in order, in this many threads. After the first error no job is begun; of several
    errors, the one of the first job is raised."""
    stopped = threading.Event()

    def run(job: tuple[Any, ...]) -> Any:
        if stopped.is_set():
            return None  # it is not seen: the error is raised instead
        try:
            return function(*job)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(run, jobs))
        finally:  # after Ctrl-C too, which this thread gets
            stopped.set()


def at_once(devices: int) -> int:
    """How many slices are decoded in parallel: on one CPU several, since the small products of a slice do not fill its
    cores (two at once on two cores are 1.4 times as fast); otherwise one, which uses all devices."""
    if jax.default_backend() != "cpu" or devices > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_AT_ONCE)
