"""Times of programs that take turns, and what follows from them."""

import pytest

from experiments.lab import attention_times, timing


def test_the_kinds_take_turns() -> None:
    """On a clock of its own, which each call moves on: the first call of each is not timed."""
    now, order = [0.0], []

    def lasting(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    runs = {"slow": lambda: lasting("slow", 0.5), "fast": lambda: lasting("fast", 0.125)}
    found = timing.take_turns(runs, 3.0, lambda: now[0])
    rounds = len(found["slow"])
    assert found == {"slow": [500.0] * rounds, "fast": [125.0] * rounds}
    assert rounds == 5, "the first that begins after three seconds is the sixth"
    assert order == ["slow", "fast"] * (1 + rounds)
    order.clear()
    short = {"slow": runs["slow"], "short": lambda: lasting("short", 2.0**-5)}  # below timing.SHORT
    assert set(timing.take_turns(short, 0.0, lambda: now[0])["short"]) == {1000 * 2.0**-5}
    assert order == ["slow", "short"] + ["slow", "short", "short"] * timing.MIN_ROUNDS, "once more, which is not timed"
    assert len(timing.take_turns(runs, 0.0, lambda: now[0])["fast"]) == timing.MIN_ROUNDS
    assert len(timing.take_turns(runs, 1e9, lambda: now[0])["fast"]) == timing.MAX_ROUNDS


def test_a_ratio_is_the_median_over_rounds() -> None:
    """One slow round of one kind is a ratio of its own, and does not move the median."""
    slow, fast = timing.columns([4.0, 40.0, 6.0]), timing.columns([2.0, 2.0, 2.0])
    assert (slow["milliseconds"], slow["rounds"]) == (6.0, 3)
    assert timing.ratio(slow, fast) == 3.0


def test_the_fitted_exponent() -> None:
    lengths = [10, 100, 1000]
    assert timing.exponent(lengths, [3.0 * n**1.7 for n in lengths]) == pytest.approx(1.7)


def test_attention_is_timed_by_kind_and_length() -> None:
    kinds = {"full, dense": (None, "dense"), "window 2": (2, "banded")}
    rows = attention_times.milliseconds(kinds, lengths=(8, 24), seconds=0.1)
    assert [(row["kind"], row["length"]) for row in rows] == [(kind, n) for n in (8, 24) for kind in kinds]
    assert all(row["rounds"] >= timing.MIN_ROUNDS and row["milliseconds"] > 0 for row in rows)
