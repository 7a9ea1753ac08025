"""Slices of fixed shape: how wide they are, how many rows they have, and how many are computed side by side."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

# Rows that one device computes together; longer inputs have fewer, as many as make so many positions. A single line
# costs as much as a whole slice: more rows would be faster for long files, and slower for short ones.
ROWS, POSITIONS = 16, 4096
MOST_AT_ONCE = 4  # slices side by side, which all hold their caches


def rows_of(width: int) -> int:
    """Rows that a device computes together of inputs that are so long."""
    return max(1, min(ROWS, POSITIONS // width))


def width_of(length: int, buckets: Sequence[int], limit: int | None) -> int:
    """The padded length of an input: a bucket, or a multiple of the last one; at most the positions of the model."""
    fitting = [width for width in sorted(buckets) if width >= length]
    width = fitting[0] if fitting else -(-length // max(buckets)) * max(buckets)
    return width if limit is None else min(width, limit)


def slices(
    numbers: Sequence[int], ids: Sequence[Sequence[int]], width: int, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of the lines of these numbers, slice after slice: padded tokens [rows, width], lengths [rows] and numbers [rows].
    Rows that are left over repeat the first, so that they end when it does."""
    for start in range(0, len(numbers), rows):
        chunk = list(numbers[start : start + rows])
        chunk += chunk[:1] * (rows - len(chunk))
        batch = np.zeros((rows, width), np.int32)
        for row, number in enumerate(chunk):
            batch[row, : len(ids[number])] = ids[number]
        yield batch, np.array([len(ids[number]) for number in chunk], np.int32), np.array(chunk, np.int32)


def side_by_side(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], threads: int) -> list[Any]:
    """`function(*job)` of each job, in order, so many at a time."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(lambda job: function(*job), jobs))
        except BaseException:  # a mistake in one, or Ctrl-C: the others are not begun
            pool.shutdown(cancel_futures=True)
            raise


def at_once(devices: int) -> int:
    """How many slices are computed side by side: on the cores of one CPU, which the small products of a slice do not
    fill (two at once on two cores are 1.4 times as fast); anywhere else one, which has all devices."""
    if jax.default_backend() != "cpu" or devices > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_AT_ONCE)
