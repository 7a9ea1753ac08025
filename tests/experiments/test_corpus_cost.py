"""The cost of a corpus, in small: every figure is there and right in size; and with known figures."""

import sys
from pathlib import Path

import pytest

from experiments import corpus_cost
from experiments.lab import watched
from transformer.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lines", "text"])
def test_a_small_corpus_is_measured(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 6, "VALIDATION": 4000, "ALONE": 50_000}.items():
        monkeypatch.setattr(corpus_cost, name, value)
    (row,) = corpus_cost.measure_case(0.0003, form)
    assert row["shards"] == 1
    assert 5e7 < row["training_memory"] < 3e9
    assert 5e7 < row["preparing_memory"] < 3e9
    assert 0 <= row["waiting_share"] <= 1
    assert row["first_step_seconds"] > row["step_seconds"] > 0
    assert row["ratio"] == pytest.approx(row["rate"] / row["library_rate"])


def test_text_of_a_size(tmp_path: Path) -> None:
    for seed in (0, 1):
        corpus_cost.write_text(tmp_path / f"{seed}.txt", 50_000, seed)
    texts = [(tmp_path / f"{seed}.txt").read_text("utf-8") for seed in (0, 1)]
    assert all(49_000 < len(text.encode()) <= 50_001 for text in texts)
    assert texts[0] != texts[1]
    corpus_cost.write_text(tmp_path / "again.txt", 50_000, 0)
    assert (tmp_path / "again.txt").read_text("utf-8") == texts[0]


def test_findings_name_the_worst(tmp_path: Path) -> None:
    common = {"reading_seconds": 9.0, "rate": 8e6, "library_rate": 1e7, "planning_seconds": 1.0, "ratio": 0.8}
    common |= {"first_step_seconds": 7.0, "waiting_share": 0.001, "step_seconds": 0.01, "block_seconds": 0.4}
    known = common | {"form": "lines", "shards": 3, "training_memory": 6e8}
    rows = [
        {"gigabytes": 1.0, "preparing_memory": 4e8, "block_share": 0.002} | known,
        {"gigabytes": 3.0, "preparing_memory": 5e8, "block_share": 0.001} | known,
    ]
    answer, blocks = corpus_cost.findings(rows, tmp_path)
    assert answer[0] == "Preparing and training take up to 0.60 GB of memory, children included."
    assert answer[1].startswith("Tokens are made 0.80 times as fast")
    assert "0.10% of its time at most" in answer[3]
    assert "takes 0.20% of the time that it lasts" in answer[3]
    assert answer[4:] == [
        "Each further gigabyte takes +50 MB more memory in preparing.",
        "Each further gigabyte takes +0 MB more memory in training.",
    ]
    assert len(blocks) == 1


def test_memory_of_a_process_and_its_children() -> None:
    child = "import time; held = bytearray(80_000_000); time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done')"
    ended = watched.run([sys.executable, "-c", code])
    assert ended.output == "done\n"
    assert 85e6 < ended.peak < 200e6


def test_a_command_that_fails() -> None:
    with pytest.raises(UserError, match=r"ended with code 3: told"):
        watched.run([sys.executable, "-c", "print('told'); raise SystemExit(3)"])
