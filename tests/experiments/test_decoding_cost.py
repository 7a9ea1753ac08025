"""The experiment about the cost of writing, at toy size: it counts what it wrote, and its ratios are right."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from experiments import decoding_cost
from experiments.decoding_cost import FULL, GPT2, OURS, THEIRS, TRANSLATION, WINDOWS


def _small(config: Any) -> Any:
    return dataclasses.replace(config, num_layers=1, d_model=16, d_ff=16, num_heads=2, vocab_size=31)


SMALL = FULL._replace(
    marian=_small(FULL.marian), gpt2=_small(FULL.gpt2), windowed=_small(FULL.windowed),
    lengths={9: 17, 16: 2}, new=3, seconds=0.01,
)  # fmt: skip


def test_all_tokens_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_cost, "bandwidth", lambda: 1e9)
    cases = [
        ({"what": TRANSLATION}, OURS, 17 * 12 + 2 * 16),
        ({"what": GPT2, "rows": 2}, OURS, 2 * 3),
        ({"what": WINDOWS, "context": 70}, f"window of {decoding_cost.WINDOW}", 70),
    ]
    for arguments, kind, tokens in cases:
        rows = decoding_cost.measure_case(**arguments, sizes=SMALL)
        assert rows[0]["kind"] == kind
        assert all(row["tokens"] == tokens and row["seconds"] > 0 and row["rounds"] >= 3 for row in rows)
    assert decoding_cost.measure_case(WINDOWS, context=20, sizes=SMALL)[1]["same"] == 1.0  # a window that hides nothing


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the `bench` extra")
@pytest.mark.parametrize("arguments", [{"what": TRANSLATION}, {"what": GPT2, "rows": 2}])
def test_the_reference_writes_the_same(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_cost, "bandwidth", lambda: 1e9)
    rows = decoding_cost.measure_case(**arguments, sizes=SMALL)
    assert len(rows) > 1
    assert {row["same"] for row in rows} == {1.0}


def test_the_answer_says_how_many_times_as_fast(tmp_path: Path) -> None:
    def row(what: str, kind: str, times: str, **more: Any) -> dict[str, Any]:
        middle = sorted(float(t) for t in times.split())[1] / 1000
        usual = {"batch": 1, "context": 0, "tokens": 100, "seconds": middle, "rounds": 3, "times": times, "same": 1.0}
        return {"what": what, "kind": kind} | usual | more

    read = {"weight_bytes": 10**9, "bandwidth": 200e9}
    rows = [
        row(TRANSLATION, OURS, "1000 2000 1000"),
        row(TRANSLATION, f"{THEIRS}, 16 at once", "9000 9000 9000"),
        row(TRANSLATION, f"{THEIRS}, 64 at once", "3000 3000 2000", same=0.5),
        row(GPT2, OURS, "1000 1000 1000", **read),
        row(WINDOWS, "full", "10 20 30", context=64),
    ]
    answer, (table,) = decoding_cost.findings(rows, tmp_path)
    assert answer == [
        "translation, beam 4: 2.00 times as fast as transformers, 64 at once (100.0 against 33.3 tokens/s; 50.0% of "
        "the tokens are the same).",
        "GPT-2, batch 1: the weights are read at 100.0 GB/s, 50% of the 200.0 GB/s that a sum over a large array "
        "reaches.",
        "A token of the small model, by the context that is written, full: 200 µs at 64.",
    ]
    assert len(table.rows) == len(rows)


def test_bandwidth_is_measured() -> None:
    assert 1e7 < decoding_cost.bandwidth(megabytes=4) < 1e14
