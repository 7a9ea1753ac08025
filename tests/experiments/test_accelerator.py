"""What one card does, as far as a processor can tell: the sections' own arithmetic, what they say, and the whole at toy
size: killed, started again, and with nothing lost."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import accelerator, run
from experiments.lab.card import device, kernels, lengths, recipe, steps, wheels
from experiments.lab.render import Table
from experiments.lab.results import read_lines
from transformer.accelerators.sheets import Sheet
from transformer.config import Config
from transformer.model.attention import attend

# What a section gives of a step, of PyTorch too.
STEP: dict[str, Any] = {
    "toy": False, "rows": 32, "length": 1024, "milliseconds": 50.0, "tokens_per_second": 655360.0, "mfu": None,
    "peak_bytes": None, "compile_seconds": 1.0, "first_loss": 10.8, "last_loss": 10.0,
}  # fmt: skip


def test_all_shares_are_nine_minutes() -> None:
    assert sum(accelerator.MOST_SECONDS.values()) <= 540
    assert set(accelerator.cases()) == set(accelerator.MOST_SECONDS)


def test_the_blocked_form_is_a_window() -> None:
    q, k, v = (jax.random.normal(key, (2, 35, 3, 5)) for key in jax.random.split(jax.random.key(0), 3))
    ours = attend(q, k, v, causal=True, window=7, backend="dense")
    np.testing.assert_allclose(lengths.blocked(q, k, v, 7), ours, atol=1e-5)


@pytest.mark.parametrize("factor", [1.1, jnp.nan])
def test_a_wrong_kernel_is_seen(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    call = kernels.Call("segments", True, 16, 8, 4, 2, "float32")
    rows = {row["backend"]: row for row in kernels.errors(call, 48)}
    assert rows["banded"]["fine"]
    assert "needs a GPU" in rows["fused"]["skipped"]
    worse = lambda *x, backend, **told: attend(*x, backend=backend, **told) * (factor if backend == "banded" else 1)  # noqa: E731
    monkeypatch.setattr(kernels, "attend", worse)
    assert not {row["backend"]: row for row in kernels.errors(call, 48)}["banded"]["fine"]


def test_an_unknown_device_has_no_mfu() -> None:
    assert device.share(1e12, 1.0, "bfloat16") is None


def test_a_roofline_stands_beside_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product of float32, whose FLOPs and bytes are counted by hand."""
    arrays = jnp.ones((67, 31)), jnp.ones((31, 53))
    compiled = jax.jit(lambda x, y: x @ y).lower(*arrays).compile()
    by_products = 1000 * 2 * 67 * 31 * 53 / 5e4
    by_bytes = 1000 * 4 * (67 * 31 + 31 * 53 + 67 * 53) / 2e2
    for sheet, least in (
        (Sheet(flops=1e9, single=5e4, memory=1.0, bandwidth=1e9, link=1.0), by_products),
        (Sheet(flops=1e9, single=1e9, memory=1.0, bandwidth=2e2, link=1.0), by_bytes),
    ):
        monkeypatch.setattr(steps, "sheet", lambda sheet=sheet: sheet)
        found = steps.beside(3 * least, compiled, Config(), 64)
        assert found == {"bound_milliseconds": pytest.approx(least), "times_bound": pytest.approx(3), "no_bound": ""}


def test_a_time_without_a_roofline_is_kept_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"bound_milliseconds": None, "times_bound": None}
    found = steps.beside(1.0, None, Config(), 64)
    assert found == nothing | {"no_bound": "no data sheet of a device named 'cpu'"}
    monkeypatch.setattr(steps, "sheet", lambda: Sheet(1.0, 1.0, 1.0, 1.0, 1.0))
    found = steps.beside(1.0, None, Config(), 64)
    assert found == nothing | {"no_bound": "AttributeError: 'NoneType' object has no attribute 'as_text'"}


def test_no_text_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(recipe.VARIABLE, str(tmp_path / "none.txt"))
    assert [list(row) for row in recipe.rows(tmp_path)] == [["what", "skipped"]]


def test_the_answer_says_what_was_measured(tmp_path: Path) -> None:
    rows = [STEP | {"section": "gpt2", "what": "ours"}, STEP | {"section": "torch", "what": "PyTorch", "mfu": 0.5}]
    rows[1]["milliseconds"] = 100.0
    rows[0] |= {"mfu": 0.4, "bound_milliseconds": 20.0, "times_bound": 2.5, "no_bound": ""}
    answer, (table,) = accelerator.findings(rows, tmp_path)
    assert answer[0].endswith("655,360 tokens/s, MFU 40.0%, 2.50 times the 20.0 ms of its roofline.")
    assert answer[1].endswith("MFU 50.0%.")
    assert answer[2].startswith("The fastest of ours is 2.00 times as fast")
    assert isinstance(table, Table)
    assert [dict(zip(table.header, row, strict=True))["measured / roofline"] for row in table.rows] == ["2.50", "–"]


def test_the_answer_says_that_there_is_no_data_sheet(tmp_path: Path) -> None:
    rows = [STEP | {"section": "gpt2", "what": "ours"}, STEP | {"section": "torch", "what": "PyTorch"}]
    rows[0] |= {"bound_milliseconds": None, "times_bound": None, "no_bound": "no data sheet of a device named 'X'"}
    answer, _ = accelerator.findings(rows, tmp_path)
    assert answer[0].endswith("655,360 tokens/s, no MFU, no roofline (no data sheet of a device named 'X').")
    assert answer[1].endswith("655,360 tokens/s, no MFU (no data sheet of this device).")


def test_the_packages_name_no_host() -> None:
    report = (
        '{"install": [{"metadata": {"name": "b", "version": "1"}, "download_info": {"url": "x://host/d/b-1.whl"}}]}'
    )
    assert wheels.parse(report) == [("b", "1", "b-1.whl")]
    assert any(line.startswith("jax[cuda13]") for line in wheels.requirements())
    assert not any(";" in line for line in wheels.constraints())


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_its_end_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All sections at toy size. It is killed while the steps of GPT-2 are measured, and started again twice."""
    (tmp_path / "input.txt").write_text("To be, or not to be, that is the question. " * 40)
    monkeypatch.setenv(recipe.VARIABLE, str(tmp_path / "input.txt"))
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", "accelerator", f"--workdir={out}"],
        cwd=Path(accelerator.__file__).parent.parent, env=os.environ | {"PYTHONPATH": "."},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (killed := _rows(out / "gpt2" / "rows-1.jsonl")) and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert killed
    kernels = _rows(out / "kernels" / "rows-1.jsonl")
    arguments = ["accelerator", f"--workdir={out}"]
    assert run.main([*arguments, "--report-only"]) == 1
    found = json.loads((out / "results.json").read_text())["cases"]
    assert (found["kernels"]["rows"], found["kernels"]["finished"]) == (kernels, True)
    assert (found["gpt2"]["rows"][0], found["gpt2"]["error"]) == (killed[0], "it was killed")

    assert run.main(arguments) == 0
    found = json.loads((out / "results.json").read_text())["cases"]
    assert list(found) == list(accelerator.MOST_SECONDS)
    assert all(one["finished"] and one["error"] is None and one["rows"] for one in found.values())
    assert found["kernels"]["rows"] == kernels
    measured = found["gpt2"]["rows"]
    assert [row["what"] for row in measured] == [f"ours, {name}" for name in steps.STEPS]
    assert {row["no_bound"] for row in measured} == {"no data sheet of a device named 'cpu'"}
    assert found["nanogpt"]["rows"][-1]["last_step"] == recipe.TOY["steps"]
    assert {path.name for path in (out / "gpt2").glob("rows-*")} == {"rows-1.jsonl", "rows-2.jsonl"}
    assert "no roofline (no data sheet of a device named 'cpu')" in (out / "report.md").read_text("utf-8")

    files = {path: path.read_bytes() for path in out.rglob("rows-*.jsonl")}
    capsys.readouterr()
    assert run.main(arguments) == 0
    assert {path: path.read_bytes() for path in out.rglob("rows-*.jsonl")} == files
    assert " s of " not in capsys.readouterr().err  # no section was begun


def _rows(path: Path) -> list[dict[str, Any]]:
    return [line["row"] for line in read_lines(path) if "row" in line]
