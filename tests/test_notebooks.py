"""Every notebook runs from top to bottom at toy size, each in a process of its own, and is one for jupytext."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 6


# The one on heads trains a translation model first.
ONES = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * ("heads" in path.stem)) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", ONES)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    environment = os.environ | {"TOY": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    # One device, as people have: eight simulated ones are for tests of sharding.
    environment["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", environment["XLA_FLAGS"])
    for name in ("WORKDIR", "PRETRAINED", "RESULTS"):
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, str(path)], env=environment, cwd=path.parent, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_a_title_and_shows_its_figures(path: Path) -> None:
    first, *cells = path.read_text(encoding="utf-8").split("# %%")[1:]
    assert first.startswith(" [markdown]\n# # ")
    assert "# %matplotlib inline" in cells[0]
