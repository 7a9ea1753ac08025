"""The cost of attention, in small and with known figures."""

from pathlib import Path
from typing import Any

import pytest

from experiments import attention_cost
from experiments.lab import timing


def test_attention_cost_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attention_cost, "SECONDS", 0.0)
    monkeypatch.setattr(attention_cost, "LONGEST", dict.fromkeys(attention_cost.LONGEST, 64))
    rows = attention_cost.measure_case(37)
    assert {row["kind"] for row in rows} >= {"jax.nn, full", "jax.nn, window", "blockwise, full", "banded, window"}
    assert all(row["rounds"] == timing.MIN_ROUNDS and row["milliseconds"] > 0 for row in rows)
    # Figures with a known answer: the window takes 2 ms a thousand tokens, full attention 1 ms a million pairs.
    known: list[dict[str, Any]] = []
    for length in (1024, 2048, 4096):
        for kind, ms in (("jax.nn, window", length**2 / 1e6), ("banded, window", length / 500)):
            known.append({"kind": kind, "length": length, "milliseconds": ms, "rounds": 3, "bytes": int(ms * 1000),
                          "times": " ".join([f"{ms:.6f}"] * 3)})  # fmt: skip
    answer, blocks = attention_cost.findings(known, tmp_path)
    assert answer[0].endswith("as `jax.nn, window`, by length: 0.5 at 1024, 1.0 at 2048, 2.0 at 4096.")
    assert "2.0 µs at 1024, 2.0 µs at 4096" in answer[1]
    assert "`jax.nn, window` time with L^2.00 and memory with L^2.00" in answer[2]
    assert "`banded, window` time with L^1.00 and memory with L^1.00" in answer[2]
    assert (tmp_path / "cost.png").exists()
    assert (tmp_path / "memory.svg").exists()
    assert len(blocks) == 4
