"""Runs as jobs of a SLURM cluster, through submitit: the same tasks, and the same files, as in `workers`.

Every task is one element of a job array and one process, on whatever node SLURM gives it; the folder of the sweep
must be one that all nodes see. `job.json` in a task's folder says which job has it, so that the same command finds it
again and submits nothing twice. A job that SLURM takes its node from, or whose time is over, is queued again, and goes
on from its checkpoint.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.questions import literal, nearest
from experiments.lab.workers import Watcher, last_words, perform, write_json
from transformer.errors import UserError

MINUTES = 240  # that a job may take, unless --submit time=MINUTES says more; submitit's own default is 5
REQUEUES = 100  # at most, of a job whose time was over; submitit's own default is 3
POLL_SECONDS = 2.0  # between two looks at the files that jobs leave
ASK_SECONDS = 30.0  # between two questions to SLURM, which is where a job that died without a word is found


def parse_option(text: str) -> tuple[str, Any]:
    """'partition=gpu' -> ("partition", "gpu"). UserError: no value, or no option of submitit's SLURM executor."""
    key, equals, value = text.partition("=")
    known = sorted(_submitit().SlurmExecutor._valid_parameters())
    if key not in known:
        raise UserError(f"--submit {text!r} is no option of sbatch here: {nearest(key, known)}")
    if not equals or not value:
        raise UserError(f"--submit {text!r} has no value: write --submit {key}=VALUE")
    return key, literal(value)


class Job:
    """What submitit calls with a task on a node.

    While a run trains, it hears the signals itself (SIGTERM where SLURM takes its node, submitit's SIGUSR2 before its
    time is over), saves, and raises `Stopped`. Then submitit's handlers are back: its own signal, sent on, has the job
    queued again with what `checkpoint` returns, and ends this process, as it does whenever no run trains.
    """

    def __call__(self, task: Any) -> tuple[str, Any]:
        kind, value = perform(task)
        if kind == "stopped":
            job = _submitit().JobEnvironment()
            state = _state(job.job_id) if job.cluster == "slurm" else "RUNNING" if job.cluster == "local" else ""
            if state == "RUNNING":
                signal.raise_signal(signal.Signals[f"SIG{job.USR_SIG}"])
            elif state:  # SLURM ends it: it was cancelled, or is queued again already, so this is no result
                sys.exit(os.EX_TEMPFAIL)
        return kind, value

    def checkpoint(self, task: Any) -> Any:
        """The same again: a run finds its checkpoint in its folder."""
        return _submitit().helpers.DelayedSubmission(self, task)


def _state(job: str) -> str:
    """What SLURM says of a job that has not ended; an empty text where it says nothing."""
    return subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()


def run_all(
    tasks: Sequence[Any],
    jobs: int | None,
    watcher: Watcher,
    folder: Path,
    options: dict[str, Any] | None = None,
    cluster: str = "slurm",
) -> None:
    """Submits what no job has yet as one array and waits for all of it.

    Args:
        tasks: as of `workers.run_all`; what they leave in their folders is the same.
        jobs: how many of the array may run at the same time; None: all.
        watcher: told what happens.
        folder: of submitit: scripts, pickles and what jobs print before and after their task.
        options: sbatch's, such as {"partition": "gpu", "time": 60}.
        cluster: "slurm", or submitit's "local" (processes) or "debug" (this process).

    Raises:
        UserError: there is no SLURM, it takes no such job, or it cannot be known whether a job still runs.
    """
    earlier = [_submitted(task, folder) if cluster == "slurm" else None for task in tasks]
    waiting = [(task, job) for task, job in zip(tasks, earlier, strict=True) if job is not None]
    fresh = [task for task, job in zip(tasks, earlier, strict=True) if job is None]
    waiting += zip(fresh, _submit(fresh, jobs, folder, options or {}, cluster), strict=True)
    asked = time.monotonic()
    while waiting:
        ask = time.monotonic() - asked > ASK_SECONDS
        asked = time.monotonic() if ask else asked
        ended = []
        for place, (task, job) in enumerate(waiting):
            if job.done(force_check=ask and place == 0):  # one answer is for all jobs
                ended.append(place)
                _tell(task, job, watcher)
        waiting = [pair for place, pair in enumerate(waiting) if place not in ended]
        watcher.tick([task for task, _ in waiting if (task.folder / "metrics.jsonl").exists()])
        if waiting:
            time.sleep(POLL_SECONDS)


def queued(tasks: Sequence[Any]) -> list[str]:
    """The ids of the jobs that were submitted for these tasks, as far as they have not ended."""
    paths = [task.folder / "job.json" for task in tasks]
    return [json.loads(path.read_text(encoding="utf-8"))["id"] for path in paths if path.exists()]


def _submitit() -> Any:
    """The package; its own set-up of logging would close the handlers of everyone else."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)
    return submitit


def _submit(tasks: Sequence[Any], jobs: int | None, folder: Path, options: dict[str, Any], cluster: str) -> list[Any]:
    if not tasks:
        return []
    submitit = _submitit()
    try:
        executor = submitit.AutoExecutor(folder.absolute(), cluster=cluster, slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(
            name="experiment",
            timeout_min=MINUTES,
            slurm_array_parallelism=jobs or len(tasks),
            **{f"slurm_{key}": value for key, value in options.items()},
        )
        for task in tasks:
            task.folder.mkdir(parents=True, exist_ok=True)
            for name in ("result.json", "error.txt"):  # what an earlier job left is not this one's
                (task.folder / name).unlink(missing_ok=True)
        found = executor.map_array(Job(), tasks)
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"SLURM takes no jobs here: {text}; --executor=local runs them on this machine") from error
    if cluster == "slurm":
        for task, job in zip(tasks, found, strict=True):
            write_json(task.folder / "job.json", {"id": job.job_id})
    return found


def _submitted(task: Any, folder: Path) -> Any:
    """The job of an earlier command that still has the task; None where it has ended or there was none."""
    path = task.folder / "job.json"
    if not path.exists():
        return None
    job = _submitit().SlurmJob(folder.absolute(), json.loads(path.read_text(encoding="utf-8"))["id"])
    state = job.get_info(mode="force").get("State", "UNKNOWN")
    if state == "UNKNOWN":
        raise UserError(
            f"SLURM does not know whether job {job.job_id} of {task.name} still runs: ask again in a minute, or delete "
            f"{str(path)!r} to submit it again"
        )
    if job.done():
        path.unlink()
        return None
    return job


def _tell(task: Any, job: Any, watcher: Watcher) -> None:
    """Tells how a task ended, by the files in its folder; of a job that died it writes error.txt."""
    result, error = task.folder / "result.json", task.folder / "error.txt"
    if result.exists():
        watcher.finished(task, json.loads(result.read_text(encoding="utf-8")))
    elif not error.exists() and (reason := _stopped(task, job)) is not None:
        watcher.stopped(task, reason)
    else:
        if not error.exists():
            why = f"its job {job.job_id} ended as {job.state} without a result"
            error.write_text(last_words(why, task.folder / "log.txt", job.paths.stderr) + "\n", encoding="utf-8")
        watcher.failed(task, error.read_text(encoding="utf-8").strip())
    (task.folder / "job.json").unlink(missing_ok=True)


def _stopped(task: Any, job: Any) -> str | None:
    """Why a job's task has steps left, though it did not fail; None where it did, or died."""
    if job.state.startswith("CANCELLED"):
        return last_words(f"its job {job.job_id} was cancelled", task.folder / "log.txt")
    try:
        kind, reason = job.result()
    except Exception:  # submitit's own errors, and those of reading what a dead job left
        return None
    return reason if kind == "stopped" else None
