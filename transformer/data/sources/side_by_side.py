"""Reads many files side by side, in constant memory."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from transformer.data.preparing import cores

Item = TypeVar("Item")
Made = TypeVar("Made")
AHEAD = 4  # results that wait for their turn, for each thread


def in_threads(function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`function` of each item, in their order, by one thread a core: for what computes outside of Python, as decoders
    of images and recordings do. The first error in order is raised, and what has not begun by then is left."""
    threads = cores()
    waiting: collections.deque[Future[Made]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
