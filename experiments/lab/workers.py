"""Processes that train one run after another, and a parent that outlives them.

A run that raises is reported by its worker; a run whose worker dies (out of memory, a crash in native code) is
reported by the parent, which starts another worker. Either way the other runs go on.
"""

import contextlib
import ctypes
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from itertools import takewhile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from transformer import command_line
from transformer.errors import Stopped, UserError

POLL_SECONDS = 1.0  # between two looks at how far the runs are
JOBS = 2  # at the same time, where there is no GPU


class Task(Protocol):
    """What a worker can do: a picklable value with a folder to work in."""

    @property
    def folder(self) -> Path: ...

    def run(self) -> dict[str, Any]:
        """Does the work and returns what `result.json` shall hold."""


class Watcher(Protocol):
    """Told what happens, in the parent."""

    def finished(self, task: Any, result: dict[str, Any]) -> None: ...

    def stopped(self, task: Any, reason: str) -> None: ...

    def failed(self, task: Any, reason: str) -> None: ...

    def tick(self, running: Sequence[Any]) -> None: ...


@dataclasses.dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Any = None


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is either complete or not there."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def perform(task: Any) -> tuple[str, Any]:
    """Does a task in this process, whoever started it; what it prints goes to log.txt.

    Leaves result.json or error.txt in its folder, and returns ("finished", result) or ("failed", one line). A run that
    was asked to stop leaves neither, since it has steps left, and returns ("stopped", one line).
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    error = task.folder / "error.txt"
    with output_to(task.folder / "log.txt"):
        try:
            error.unlink(missing_ok=True)
            began = time.time()
            result = task.run() | {"began": round(began), "ended": round(time.time())}
            write_json(task.folder / "result.json", result)
            return "finished", result
        except Stopped as reason:
            print(reason)
            return "stopped", str(reason)
        except Exception as reason:
            traceback.print_exc()
            error.write_text(one_line(reason) + "\n", encoding="utf-8")
            return "failed", one_line(reason)


def gpus() -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them: what the environment allows, else all that
    `nvidia-smi` lists, or their MIG instances. JAX is not asked, as it would take each of them for this process."""
    if not {"cuda", "gpu"} & set((os.environ.get("JAX_PLATFORMS") or "cuda").split(",")):
        return []
    if (allowed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:  # CUDA reads it up to the first wrong name
        return list(takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, map(str.strip, allowed.split(","))))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return []
    return re.findall(r"UUID: (MIG-[^)]+)", listed) or re.findall(r"UUID: (GPU-[^)]+)", listed)


def run_all(tasks: Sequence[Any], jobs: int | None, watcher: Watcher) -> None:
    """Does all tasks, `jobs` at a time (None: one a GPU, or `JOBS` without any), each of the processes on its own share
    of the cores and, before JAX starts in it, of the GPUs: equally many each, or one that several share.

    A finished task leaves `result.json` in its folder, a failed one `error.txt`; what it printed is in `log.txt`.
    """
    waiting, devices = list(reversed(tasks)), gpus()
    jobs = jobs or len(devices) or JOBS
    workers: list[_Worker | None] = [None] * min(jobs, len(tasks))
    shares, each = _shares(len(workers)), max(1, len(devices) // jobs)
    try:
        while waiting or any(worker is not None and worker.task is not None for worker in workers):
            for place, worker in enumerate(workers):
                if waiting and worker is None:
                    own = [devices[i % len(devices)] for i in range(place * each, (place + 1) * each) if devices]
                    worker = workers[place] = _start(shares[place], own)
                if waiting and worker is not None and worker.task is None:
                    worker.task = waiting.pop()
                    _send(worker)
            busy = {worker.pipe: place for place, worker in enumerate(workers) if worker is not None and worker.task}
            for ready in wait(list(busy), timeout=POLL_SECONDS):
                place = busy[ready]  # type: ignore[index]
                worker = workers[place]
                assert worker is not None
                task, worker.task = worker.task, None
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    kind, value = "failed", death(worker.process.exitcode, task.folder / "log.txt")
                    (task.folder / "error.txt").write_text(value + "\n", encoding="utf-8")
                    workers[place] = None
                if kind == "finished":
                    watcher.finished(task, value)
                elif kind == "stopped":
                    watcher.stopped(task, value)
                else:
                    watcher.failed(task, value)
            watcher.tick([worker.task for worker in workers if worker is not None and worker.task])
    finally:
        for worker in workers:
            if worker is not None:
                worker.pipe.close()
                if worker.task is not None:  # an idle worker ends by itself when its pipe closes
                    worker.process.terminate()
        for worker in workers:
            if worker is not None:
                worker.process.join(20)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()


def _shares(count: int) -> list[list[int]]:
    """The cores of each of `count` workers; empty lists where the system cannot pin processes."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    return [cores[place::count] or [cores[place % len(cores)]] for place in range(count)]


def _start(cores: list[int], devices: list[str]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would lose
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, cores, devices), name="experiment")
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _send(worker: _Worker) -> None:
    worker.task.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a worker that died while idle: `wait` sees its pipe closed
        worker.pipe.send(worker.task)


def _serve(pipe: Connection, cores: list[int], devices: list[str]) -> None:
    """The worker: tasks in, what `perform` returns out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    die_with_parent()
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX counts the cores for its threads
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    command_line.keep_freed_memory()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        answer = perform(task)
        try:
            pipe.send(answer)
        except OSError:  # the parent is gone; what is finished is on disk
            return


def die_with_parent() -> None:
    """Linux: a parent that is killed takes its workers along; one that trained on would hold its run's folder against
    the same command, started again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of <sys/prctl.h>


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """All that this process prints, native code included, goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def one_line(error: Exception) -> str:
    """The type and the message of an error, without line breaks; of a `UserError` its sentence, of a group its
    members."""
    if isinstance(error, ExceptionGroup):
        return "; ".join(map(one_line, error.exceptions))
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


def death(code: int | None, log: Path) -> str:
    """Why a process that said nothing is gone, as far as it can be known."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = f"its process was ended by {name}"
        if name == "SIGKILL":
            why += ", as the system does when memory runs out"
    else:
        why = f"its process ended with exit code {code}"
    return last_words(why, log)


def last_words(why: str, *logs: Path) -> str:
    """The reason, with the last line of the first of the logs that has one."""
    for log in logs:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        if last := next((line.strip() for line in reversed(lines) if line.strip()), ""):
            return f"{why}; the last line of its log is: {last[-200:]}"
    return why
