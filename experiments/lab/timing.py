"""Times of programs that take turns, and what follows from them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.lab.provenance import provenance

MIN_ROUNDS, MAX_ROUNDS = 3, 15
REST = 0.02  # seconds before each timing, in which the threads of the program before come to rest
# A run that takes less (seconds) is called once more before each timing, so that its own threads are awake: after a
# rest PyTorch's attention of 8 heads of 64 places took 11 ms, and 0.3 ms in a row.
SHORT = 0.1


def take_turns(
    runs: Mapping[str, Callable[[], Any]], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of each run in each round: after one call of each that is not timed, the kinds take turns.

    Rounds begin for `seconds`; there are MIN_ROUNDS of them at least and MAX_ROUNDS at most. Before the timing of a
    SHORT run there is one call that is not timed.
    """
    took = {kind: _seconds(run, clock) for kind, run in runs.items()}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    end = clock() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and clock() > end:
            break
        for kind, run in runs.items():
            time.sleep(REST)
            if took[kind] < SHORT:
                run()
            took[kind] = _seconds(run, clock)
            times[kind].append(1000 * took[kind])
    return times


def _seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


def clock() -> Callable[[], float]:
    """On one core of a processor its own time, to which other programs of the machine add nothing; else the wall's."""
    where = provenance()
    return time.process_time if where["cores"] == 1 and "processor" in where["device"] else time.perf_counter


def columns(milliseconds: Sequence[float]) -> dict[str, Any]:
    """What a row says of the times of a kind: {"milliseconds" (median), "rounds", "times" (of each round)}."""
    return {
        "milliseconds": float(np.median(milliseconds)),
        "rounds": len(milliseconds),
        "times": " ".join(f"{t:.3f}" for t in milliseconds),
    }


def ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> float:
    """How many times as fast the second row's kind is: the median over the rounds that both took turns in."""
    pair = ([float(t) for t in row["times"].split()] for row in (slow, fast))
    return float(np.median([a / b for a, b in zip(*pair, strict=True)]))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of the least-squares fit value = a · size^b, on logarithmic axes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
