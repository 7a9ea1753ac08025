"""What is needed in order, made ahead by threads."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")
AHEAD = 2  # results that wait, for each thread


class Ahead(Iterator[Made], Generic[Made]):
    """make(start), ..., make(stop - 1), in this order, whatever takes how long: of T threads each makes every T-th, and
    waits where AHEAD of its results do. An error is raised in the place of its result.

    Taking one that is ready takes 0.06 ms, a fifth of what Grain's iterator takes, which counts: a step may take 5 ms.
    """

    def __init__(self, make: Callable[[int], Made], start: int, stop: int, threads: int) -> None:
        self._steps = iter(range(start, stop))
        self._start, self._queues = start, [queue.Queue[Any](AHEAD) for _ in range(threads)]
        closed = threading.Event()
        # The threads know no iterator, so that it can end, and they with it.
        self._close = weakref.finalize(self, _close, closed, self._queues)
        for number, made in enumerate(self._queues):
            steps = range(start + number, stop, threads)
            threading.Thread(target=_work, args=(make, steps, made, closed), name="ahead", daemon=True).start()

    def __next__(self) -> Made:
        step = next(self._steps)
        if not self._close.alive:
            raise ValueError("the iterator is closed")
        result, error = self._queues[(step - self._start) % len(self._queues)].get()
        if error is not None:
            self.close()
            raise error
        return result

    def close(self) -> None:
        """Ends the threads; what they make at the moment is the last."""
        self._close()


def _work(make: Callable[[int], Any], steps: range, made: "queue.Queue[Any]", closed: threading.Event) -> None:
    for step in steps:
        try:
            result, error = make(step), None
        except BaseException as raised:
            result, error = None, raised
        made.put((result, error))
        if closed.is_set() or error is not None:
            return


def _close(closed: threading.Event, queues: Sequence["queue.Queue[Any]"]) -> None:
    closed.set()
    for waiting in queues:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()  # so that a thread that waits for room goes on, and ends
