"""What is made ahead, by any number of threads, comes in order; errors come in their place; threads end."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from transformer.data.batches.ahead import AHEAD, Ahead


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ahead"}


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """No thread outlives its test."""
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not threads()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_whatever_takes_how_long(count: int) -> None:
    def slow(step: int) -> int:
        time.sleep(0.003 * (step % 3))
        return step * step

    assert list(Ahead(slow, 4, 21, count)) == [step * step for step in range(4, 21)]
    assert list(Ahead(slow, 7, 7, count)) == []
    assert list(Ahead(slow, 7, 8, count)) == [49]


@pytest.mark.parametrize("count", [1, 2])
def test_a_few_are_made_ahead_and_no_more(count: int) -> None:
    made: list[int] = []
    iterator = Ahead(made.append, 0, 10**9, count)
    most = count * (AHEAD + 1)  # those that wait, and one in each hand
    deadline = time.monotonic() + 5
    while len(made) < most and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)
    assert sorted(made) == list(range(most))
    next(iterator)
    iterator.close()


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_in_its_place_and_ends_all(count: int) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise KeyError("three")
        return step

    iterator = Ahead(make, 0, 10**9, count)
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three"):
        next(iterator)
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_threads_end_with_an_iterator_that_is_forgotten() -> None:
    iterator = Ahead(lambda step: step, 0, 10**9, 2)
    next(iterator)
    assert len(threads()) == 2
    del iterator


def test_work_is_done_side_by_side() -> None:
    """Two threads meet: neither could go on alone."""
    meeting = threading.Barrier(2, timeout=5)
    assert len(list(Ahead(lambda step: meeting.wait(), 0, 6, 2))) == 6
