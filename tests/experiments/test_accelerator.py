"""What one card does, as far as a processor can tell: the sections' own arithmetic, and what they say."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import accelerator
from experiments.lab.card import device, kernels, lengths, recipe, wheels
from transformer.model.attention import attend


def test_all_shares_are_nine_minutes() -> None:
    assert sum(accelerator.SECONDS.values()) <= 540
    assert set(accelerator.cases()) == set(accelerator.SECONDS)


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


def test_no_text_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(recipe.VARIABLE, str(tmp_path / "none.txt"))
    assert [list(row) for row in recipe.rows(tmp_path)] == [["what", "skipped"]]


def test_the_answer_says_what_was_measured(tmp_path: Path) -> None:
    step: dict[str, Any] = {
        "toy": False, "rows": 32, "length": 1024, "milliseconds": 50.0, "tokens_per_second": 655360.0, "mfu": None,
        "peak_bytes": None, "compile_seconds": 1.0, "first_loss": 10.8, "last_loss": 10.0,
    }  # fmt: skip
    rows = [step | {"section": "gpt2", "what": "ours"}, step | {"section": "torch", "what": "PyTorch", "mfu": 0.5}]
    rows[1]["milliseconds"] = 100.0
    answer, _ = accelerator.findings(rows, tmp_path)
    assert answer[0].endswith("655,360 tokens/s, no MFU (no data sheet of this device).")
    assert answer[1].endswith("MFU 50.0%.")
    assert answer[2].startswith("The fastest of ours is 2.00 times as fast")


def test_the_packages_name_no_host() -> None:
    report = (
        '{"install": [{"metadata": {"name": "b", "version": "1"}, "download_info": {"url": "x://host/d/b-1.whl"}}]}'
    )
    assert wheels.parse(report) == [("b", "1", "b-1.whl")]
    assert any(line.startswith("jax[cuda13]") for line in wheels.requirements())
    assert not any(";" in line for line in wheels.constraints())
