"""The cost of attention, in small and with known figures."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import attention_cost
from experiments.lab import timing
from experiments.lab.attention_times import draw
from experiments.lab.peers.blocked import blocked
from transformer.model.attention import attend


def test_attention_cost_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attention_cost, "SECONDS", 0.0)
    monkeypatch.setattr(attention_cost, "WINDOW", 7)
    monkeypatch.setattr(attention_cost, "NARROW", (3,))
    monkeypatch.setattr(attention_cost, "NARROW_AT", ((16, 37),))
    rows = attention_cost.measure_case(16, 37)
    kinds = {row["kind"] for row in rows}
    assert kinds >= {"jax.nn, full", "dense, full", "auto, full", "jax.nn, window 7", "blocked, window 3"}
    assert kinds >= {"auto, window 3", "blocked, window 7", "auto, window 7"}
    assert all(row["rounds"] == timing.MIN_ROUNDS and row["milliseconds"] > 0 for row in rows)
    monkeypatch.setattr(attention_cost, "MOST", {"jax.nn": 1, "torch": 1, "auto, full": 1, "dense": 10**9})
    kinds = {row["kind"] for row in attention_cost.measure_case(1, 5)}
    assert kinds == {"dense, full"}  # a window of 7 sees all of 5


def test_figures_with_a_known_answer(tmp_path: Path) -> None:
    """The window takes 2 ms a thousand tokens, the peers' windows 1 ms a million pairs."""
    known: list[dict[str, Any]] = []
    for length in (1024, 2048, 4096):
        for kind, ms in (
            ("jax.nn, window 128", length**2 / 1e6),
            ("blocked, window 128", length / 250),
            ("auto, window 128", length / 500),
        ):
            known.append({"kind": kind, "units": 8, "length": length, "milliseconds": ms, "rounds": 3,
                          "bytes": int(ms * 1000), "times": " ".join([f"{ms:.6f}"] * 3)})  # fmt: skip
    answer, blocks = attention_cost.findings(known, tmp_path)
    assert answer[0].endswith("`jax.nn, window 128`, by rows times heads and length: 0.51 at 8 x 1,024, "
                              "1.02 at 8 x 2,048, 2.05 at 8 x 4,096.")  # fmt: skip
    assert "2.00 at 8 x 1,024" in answer[1]
    assert answer[2] == "It takes 50% to 50% of the memory of `blocked, window 128`."
    assert "2.0 µs at 1024, 2.0 µs at 4096" in answer[3]
    assert "`jax.nn, window 128` time with L^2.00 and memory with L^2.00" in answer[4]
    assert "`auto, window 128` time with L^1.00 and memory with L^1.00" in answer[4]
    assert (tmp_path / "cost.png").exists()
    assert (tmp_path / "memory.svg").exists()
    assert len(blocks) == 4


@pytest.mark.parametrize(("length", "window", "block"), [(37, 5, 4), (37, 5, 5), (64, 16, 32), (7, 3, 32)])
def test_the_blocked_peer_has_the_same_window(length: int, window: int, block: int) -> None:
    q, k, v = jnp.asarray(draw(length, 2, 4, rows=3))
    theirs = blocked(q, k, v, window, block)
    np.testing.assert_allclose(theirs, attend(q, k, v, causal=True, window=window, backend="dense"), atol=1e-5)
