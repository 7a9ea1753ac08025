"""Files that are read side by side come in order, a few ahead; the first error is raised."""

import threading
import time
from collections.abc import Iterator

import pytest

from transformer.data.sources import side_by_side
from transformer.data.sources.side_by_side import in_threads


def test_results_are_in_order_and_of_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "cores", lambda: 3)
    names = set()

    def slow(number: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.002 * (number % 3))
        return -number

    assert list(in_threads(slow, range(40))) == [-number for number in range(40)]
    assert len(names) == 3
    assert list(in_threads(slow, [])) == []


def test_only_a_few_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "cores", lambda: 2)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_threads(lambda number: number, items())
    assert next(results) == 0
    assert len(taken) == 2 * side_by_side.AHEAD


def test_the_first_error_in_order_is_raised() -> None:
    def read(number: int) -> int:
        if number in (5, 7):
            time.sleep(0.01 if number == 5 else 0)
            raise ValueError(f"number {number}")
        return number

    results = in_threads(read, range(100))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="number 5"):
        next(results)
