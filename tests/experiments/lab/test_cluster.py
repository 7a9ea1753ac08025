"""Tasks through submitit: in this process, in processes, and as arrays of a SLURM that is made up."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit import SlurmJob

from experiments import run
from experiments.lab import cluster
from experiments.lab.results import read_lines
from experiments.lab.single import Run
from transformer.config import Config, load_file, override
from transformer.errors import UserError

FAKE = str(Path(__file__).with_name("fake_question.py"))
SLURM = Path(__file__).with_name("fake_slurm.py")


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def finished(self, task: Any, result: dict[str, Any]) -> None:
        self.said[task.name] = result["metrics"]["test/exact_match"]

    def stopped(self, task: Any, reason: str) -> None:
        self.said[task.name] = f"stopped: {reason}"

    def failed(self, task: Any, reason: str) -> None:
        self.said[task.name] = reason

    def tick(self, running: Any) -> None: ...


def _runs(folder: Path, seeds: int) -> list[Run]:
    config = override(Config(), {"steps": 20})
    return [
        Run(
            FAKE, "none-full", seed, override(config, {"seed": seed}), {}, folder / "runs" / "none-full" / f"seed{seed}"
        )
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("kind", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_the_same_tasks_leave_the_same_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "FAKE_FAULT", "none-full/1=raise;" + ("none-full/3=kill" if kind == "local" else "none-full/2=stop")
    )
    tasks, told = _runs(tmp_path, 4 if kind == "local" else 3), Told()
    cluster.run_all(tasks, 2, told, tmp_path / "slurm", cluster=kind)
    first = json.loads((tasks[0].folder / "result.json").read_text())
    assert told.said["none-full seed 0"] == first["metrics"]["test/exact_match"]
    assert told.said["none-full seed 1"] == "ValueError: the fake broke"
    assert (tasks[1].folder / "error.txt").read_text() == "ValueError: the fake broke\n"
    if kind == "debug":
        assert told.said["none-full seed 2"] == "stopped: the fake was stopped after step 7 of 20, which is saved"
        assert not {"error.txt", "result.json"} & {path.name for path in tasks[2].folder.iterdir()}
    assert not list(tmp_path.rglob("job.json"))
    if kind == "local":  # a process of its own, whose output can be caught
        assert "training none-full/0" in (tasks[0].folder / "log.txt").read_text()
        assert told.said["none-full seed 3"].startswith("its job ")
        assert "training none-full/3" in (tasks[3].folder / "error.txt").read_text()
        assert not (tasks[3].folder / "result.json").exists()


def test_a_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^SLURM takes no jobs here: .*srun.*--executor=local runs them"):
        cluster.run_all(_runs(tmp_path, 1), 1, Told(), tmp_path / "slurm")
    assert not (tmp_path / "runs").exists(), "no run has begun"


def test_options_of_sbatch() -> None:
    assert cluster.parse_option("partition=gpu") == ("partition", "gpu")
    assert cluster.parse_option("gpus_per_node=2") == ("gpus_per_node", 2)
    with pytest.raises(UserError, match="did you mean 'partition'"):
        cluster.parse_option("partitio=gpu")
    with pytest.raises(UserError, match="has no value: write --submit time=VALUE"):
        cluster.parse_option("time")


def test_options_of_sbatch_need_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main([FAKE, f"--workdir={tmp_path}", "--submit", "partition=gpu"])
    assert "is for --executor=slurm" in capsys.readouterr().err


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the made-up SLURM's state."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "state").mkdir()
    for name in ("sbatch", "srun", "sacct", "squeue", "scontrol", "scancel"):
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SLURM}" {name} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "state"))
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(cluster, "ASK_SECONDS", 0.5)
    return tmp_path / "state"


@pytest.mark.slow
def test_a_sweep_on_slurm(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C leaves the jobs, the same command finds them; what failed or died is told, and tried again."""
    workdir = tmp_path / "sweep"
    arguments = [FAKE, f"--workdir={workdir}", "--steps=100", "--seeds=1", "--jobs=3", "--executor=slurm"]
    arguments += ["--submit", "partition=gpu"]
    monkeypatch.setenv("FAKE_FAULT", "learned-full/0=raise;none-full/0=kill")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    (slurm / "hold").touch()
    with monkeypatch.context() as patch:
        patch.setattr(cluster.time, "sleep", interrupt)
        assert run.main(arguments) == os.EX_TEMPFAIL
    assert "`scancel 1000` ends them; the same command waits for them" in capsys.readouterr().err
    script = (slurm / "1000.sh").read_text()
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --array=0-5%3" in script
    assert f"#SBATCH --time={cluster.MINUTES}" in script

    (slurm / "hold").unlink()
    assert run.main(arguments) == 1
    assert "--array" not in (slurm / "1001.sh").read_text(), "the measurement of cost, and nothing twice"
    text = (workdir / "report.md").read_text()
    assert "ValueError: the fake broke" in text
    assert "its job 1000_4 ended as OUT_OF_MEMORY without a result; the last line of its log is: training" in text

    monkeypatch.setenv("FAKE_FAULT", "")
    assert run.main(arguments) == 0
    assert "#SBATCH --array=0-1%2" in (slurm / "1002.sh").read_text(), "what failed, and nothing else"
    with (workdir / "results.csv").open(encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 6

    (workdir / "runs/none-full/seed0/result.json").unlink()
    (workdir / "runs/none-full/seed0/job.json").write_text('{"id": "77_0"}')
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert "SLURM does not know whether job 77_0 of none-full seed 0 still runs" in capsys.readouterr().err


QUESTION = '''"""Is a run that was interrupted another one?"""

import os, time
from pathlib import Path

import jax, numpy as np

BASE, REFERENCE = "configs/vit.py", "own"
PRIMARY, MATTERS = "test/accuracy", 0.02
TUNE = None


def variants(base):
    return {"own": {}}


def wait(doing):
    while Path(__file__).with_name(f"hold-{doing}-{os.environ['SLURM_JOB_ID']}").exists():
        time.sleep(0.05)


def train(config, workdir):
    from transformer.train import train
    from transformer.training.writer import Writer

    write = Writer.write
    Writer.write = lambda *given, **values: (write(*given, **values), wait("training"))
    train(config, workdir)


def measure(trained):
    with Path(__file__).with_name(f"measuring-{os.environ['SLURM_JOB_ID']}").open("a") as file:
        file.write("once more\\n")
    wait("measuring")
    sums = [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(trained.params)]
    return {"metrics": {"test/exact_match": sum(sums)}, "notes": []}
'''


@pytest.mark.slow
def test_a_job_that_is_interrupted_goes_on_and_one_that_is_cancelled_does_not(slurm: Path, tmp_path: Path) -> None:
    """Submitit's own signals, sent to real training: its node is reclaimed; then, while it measures, its time is up."""
    question = tmp_path / "question.py"
    question.write_text(QUESTION)
    changes = {"steps": 60, "logging.log_every": 20, "model.num_layers": 1, "model.d_model": 16, "model.d_ff": 16}
    config = override(load_file("configs/vit.py"), changes | {"logging.checkpoint_every": 60, "mesh.data": 1})
    tasks = [Run(str(question), name, 0, config, {}, tmp_path / name) for name in ("moved", "ended", "taken", "whole")]
    moved, ended, taken, _ = tasks
    for hold in ("training-1000_0", "training-1000_1", "training-1000_2", "measuring-1000_0"):
        (tmp_path / f"hold-{hold}").touch()

    def job(task: Run) -> SlurmJob:
        return SlurmJob(tmp_path / "slurm", json.loads((task.folder / "job.json").read_text())["id"])

    def takes_itself() -> None:
        """As SLURM does without a grace time: it queues the job, and then ends it."""
        (slurm / "1000_2.state").write_text("REQUEUED")
        subprocess.run(["scancel", "1000_2", "--signal", "TERM"], check=True)

    disturbances = {
        "training-1000_0": lambda: job(moved)._interrupt(),  # SIGTERM, and then SIGUSR2
        "training-1000_1": lambda: job(ended).cancel(),
        "training-1000_2": takes_itself,
        "measuring-1000_0": lambda: job(moved)._interrupt(timeout=True),
    }

    def has_come(where: str) -> bool:
        doing, _, number = where.partition("-1000_")
        if doing == "training":
            return any("loss" in line for line in read_lines(tasks[int(number)].folder / "metrics.jsonl"))
        return (tmp_path / where).exists()

    class Disturbing(Told):
        def tick(self, running: Any) -> None:
            for where in filter(has_come, list(disturbances)):
                disturbances.pop(where)()
                (tmp_path / f"hold-{where}").unlink()

    told = Disturbing()
    cluster.run_all(tasks, None, told, tmp_path / "slurm")
    assert not disturbances
    assert "#SBATCH --array=0-3%4" in (slurm / "1000.sh").read_text(), "nobody asked for fewer at a time"
    cancelled = (
        r"stopped: its job 1000_1 was cancelled; the last line .* is: stopped after step \d+ of 60, which is saved"
    )
    assert re.fullmatch(cancelled, told.said["ended seed 0"]), "and it is not queued again"
    for task in (moved, taken):
        log = (task.folder / "log.txt").read_text()
        assert re.search(r"stopped after step (\d+) of 60.*resumed at step \1", log, re.DOTALL)
        assert told.said[task.name] == told.said["whole seed 0"], "no bit differs"
    assert (tmp_path / "measuring-1000_0").read_text() == "once more\n" * 2
