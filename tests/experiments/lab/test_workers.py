"""What each worker is given of the machine: its cores, and its GPUs, which nobody needs here."""

import dataclasses
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.lab import workers


@dataclasses.dataclass(frozen=True)
class Look:
    """Says what its process sees, and waits until all of a round have begun, so that each has a worker of its own."""

    folder: Path
    together: int

    def run(self) -> dict[str, Any]:
        while len(list(self.folder.parent.glob("*/log.txt"))) < self.together:
            time.sleep(0.01)
        return {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "jax": "jax" in sys.modules,
                "cores": sorted(os.sched_getaffinity(0)), "process": os.getpid()}  # fmt: skip


class Told:
    """A watcher that keeps the results."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def finished(self, task: Any, result: dict[str, Any]) -> None:
        self.results.append(result)

    def stopped(self, task: Any, reason: str) -> None:
        raise AssertionError(reason)

    failed = stopped

    def tick(self, running: Any) -> None: ...


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose `nvidia-smi` lists what is in the file; by default three GPUs."""
    listed = tmp_path / "listed"
    listed.write_text("".join(f"GPU {i}: NVIDIA H200 (UUID: GPU-{i}f)\n" for i in range(3)))
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\ntest "$*" = -L && exec cat "{listed}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    return listed


MIG = """GPU 0: NVIDIA H200 (UUID: GPU-0f)
  MIG 3g.71gb     Device  0: (UUID: MIG-a)
  MIG 3g.71gb     Device  1: (UUID: MIG-b)
"""


@pytest.mark.parametrize(
    ("environment", "listed", "expected"),
    [
        ({}, None, ["GPU-0f", "GPU-1f", "GPU-2f"]),
        ({}, MIG, ["MIG-a", "MIG-b"]),
        ({}, "NVIDIA-SMI has failed because it couldn't communicate with the driver\n", []),
        ({"CUDA_VISIBLE_DEVICES": "2, GPU-0f"}, None, ["2", "GPU-0f"]),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, None, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, []),
        ({"JAX_PLATFORMS": "cpu"}, None, []),
        ({"JAX_PLATFORMS": "cuda,cpu"}, None, ["GPU-0f", "GPU-1f", "GPU-2f"]),
    ],
)
def test_the_gpus_that_runs_may_use(
    environment: dict[str, str], listed: str | None, expected: list[str], machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if listed is not None:
        machine.write_text(listed)
    assert workers.gpus() == expected


def test_a_machine_without_nvidia_smi_has_none(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert workers.gpus() == []


@pytest.mark.parametrize(
    ("jobs", "runs", "seen"),
    [
        (None, 3, ["GPU-0f", "GPU-1f", "GPU-2f"]),
        (5, 5, ["GPU-0f", "GPU-0f", "GPU-1f", "GPU-1f", "GPU-2f"]),
        (2, 2, ["GPU-0f", "GPU-1f"]),  # as many for each run
        (1, 1, ["GPU-0f,GPU-1f,GPU-2f"]),
    ],
)
def test_workers_share_out_the_gpus(
    jobs: int | None, runs: int, seen: list[str], machine: Path, tmp_path: Path
) -> None:
    told = Told()
    workers.run_all([Look(tmp_path / "runs" / str(i), runs) for i in range(runs)], jobs, told)
    assert sorted(result["gpus"] for result in told.results) == seen
    assert not any(result["jax"] for result in told.results), "the environment is set before JAX is there to read it"
    if jobs is None:
        held = Counter(core for result in told.results for core in result["cores"])
        assert set(held) == os.sched_getaffinity(0)
        assert max(held.values()) - min(held.values()) <= 1


def test_without_a_gpu_there_are_two_workers(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    told = Told()
    workers.run_all([Look(tmp_path / "runs" / str(i), 2) for i in range(3)], None, told)
    assert [result["gpus"] for result in told.results] == [None] * 3
    assert len({result["process"] for result in told.results}) == workers.JOBS


PARENT = """
import sys
if __name__ == "__main__":
    from experiments import run
    assert run.main(sys.argv[1:]) == 0
    assert "jax" not in sys.modules or not sys.modules["jax"]._src.xla_bridge._backends, "it would hold every GPU"
"""


@pytest.mark.slow
def test_the_process_of_the_sweep_starts_no_backend(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    question = str(Path(__file__).with_name("fake_question.py"))
    command = [sys.executable, tmp_path / "parent.py", question, f"--workdir={tmp_path / 'out'}", "--seeds=1"]
    root = Path(__file__).parents[3]
    subprocess.run([*command, "--steps=100"], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=True)
