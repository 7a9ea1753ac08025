"""What a run of one or more processes needs: joining them, a lock on the folder, signals, and agreement on flags,
values and failures."""

import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from transformer.errors import Stopped, UserError
from transformer.training.lock import only_process_in

AGREE_EVERY = 8  # steps between agreements of several processes; each costs a question to the first process
SECONDS_TO_APPEAR = 5.0
# Ctrl-C; what clusters send before they reclaim a machine; before a job's time is over; submitit's choice for both.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
BEFORE_THE_FIRST = "stopped before the first step of this start, with nothing to save"


def join(coordinator: str | None, count: int | None, index: int | None, seconds: int) -> None:
    """Makes this process the `index`-th of `count` of one run; its first process listens at `coordinator`, host:port.
    Call it before any device is used. Without a coordinator, all three come from the environment (JAX supports SLURM,
    Open MPI and GKE). On CPUs, processes communicate over gloo. UserError, with their numbers: processes do not join in
    time."""
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or count is None or index is None or not 0 <= index < count:
            raise UserError(
                f"--coordinator={coordinator} --processes={count} --process={index} name no process of a run: give "
                "host:port, how many processes there are, and which one this is, from 0"
            )
        _roll_call(host, int(port), count, index, seconds)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=seconds)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"the processes of the run cannot be brought together ({reason}): give --coordinator, --processes and "
            "--process"
        ) from error


def _roll_call(host: str, port: int, count: int, index: int, seconds: int) -> None:
    """Returns when all processes are present. JAX would abort, with a stack trace, if one never came."""
    until = time.monotonic() + seconds

    def left() -> float:
        return max(until - time.monotonic(), 1e-3)

    if index:
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=left()) as call:
                call.sendall(f"{index}\n".encode())
                if call.recv(2) == b"go":
                    return
            time.sleep(0.1)
        raise UserError(f"process 0 did not answer at {host}:{port} within {seconds} s: start all {count} processes")
    missing, calls = set(range(1, count)), []
    with socket.create_server(("", port)) as server, contextlib.ExitStack() as held:
        while missing and time.monotonic() < until:
            server.settimeout(left())
            with contextlib.suppress(OSError, ValueError):
                call = held.enter_context(server.accept()[0])
                call.settimeout(left())
                missing.discard(int(call.recv(16)))
                calls.append(call)
        if missing:
            named = f"process{'es' * (len(missing) > 1)} {', '.join(map(str, sorted(missing)))} of {count}"
            raise UserError(f"{named} did not join at {host}:{port} within {seconds} s: start all of them")
        for call in calls:
            with contextlib.suppress(OSError):
                call.sendall(b"go")
                call.recv(1)  # it closes first, so that JAX can listen here at once


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """`lock.only_process_in` for a run: its first process holds the lock for all. UserErrors, in all processes: the
    first cannot have it; another does not see the folder, or cannot write to it."""
    with contextlib.ExitStack() as held:
        with together():
            if jax.process_index() == 0:
                held.enter_context(only_process_in(workdir))
        _check_shared(workdir)
        yield


def _check_shared(workdir: Path) -> None:
    """UserError, in all processes: one of them has another folder of that name, or none, or cannot write to it."""
    if jax.process_count() == 1:
        return
    first, *_ = gather(f"{secrets.token_hex(8)} {socket.gethostname()}")
    token, host = first.split()
    mark, own = workdir / f".{token}", workdir / f".{token}.{jax.process_index()}"
    with together():
        if jax.process_index() == 0:
            _write_mark(mark)
    try:
        with together():
            if not _appears(mark):
                raise UserError(
                    f"{str(workdir.absolute())!r} on {socket.gethostname()} is not the folder of that name that process"
                    f" 0 has on {host}: all processes need one --workdir, on a file system that their machines share"
                )
            _write_mark(own)
            own.unlink()
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)


def _write_mark(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise UserError(f"cannot write to --workdir={str(path.parent)!r}: {error.strerror}") from error


def _appears(path: Path) -> bool:
    """Whether a file is there within SECONDS_TO_APPEAR: network file systems may be late."""
    until = time.monotonic() + SECONDS_TO_APPEAR
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def together(stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """A part of the start that each process does by itself; where it fails in one, it fails in all, with the sentence
    of the first that failed. Nothing in it may communicate. Raises Stopped in all where `stop()` is true in one."""
    failure, reason = None, None
    try:
        yield
    except Exception as error:
        failure, reason = error, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    told = [json.loads(text) for text in gather(json.dumps([reason, jax.process_count() > 1 and stop()]))]
    if failure is not None:
        raise failure
    failed = [(index, text) for index, (text, _) in enumerate(told) if text is not None]
    if failed:
        index, text = failed[0]
        raise UserError(f"process {index} of {len(told)}: {text}")
    if any(stopped for _, stopped in told):
        raise Stopped(BEFORE_THE_FIRST)


def gather(text: str) -> list[str]:
    """The texts of all processes, by their index."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size))
    padded = np.pad(data, (0, sizes.max() - data.size))
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def check_same(values: Mapping[str, Any]) -> None:
    """UserError, in all processes and with the name of the first such value: they were given different values."""
    told = [json.loads(text) for text in gather(json.dumps(values))]
    for index, other in enumerate(told):
        for name, value in other.items():
            if value != told[0][name]:
                raise UserError(
                    f"process {index} of {len(told)} has {name}={value!r} and process 0 has {told[0][name]!r}: start "
                    "all processes with the same command, config and data"
                )


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether one of SIGNALS has come; who calls it saves and stops. Until the first call there is
    nothing to save: then a signal raises Stopped at once, in a run of one process. A second Ctrl-C ends the process at
    once, even in the middle of compiling. Signals reach the main thread only: in any other thread it is always False. A
    signal that is ignored (nohup) stays so."""
    asked, looked, alone = threading.Event(), threading.Event(), jax.process_count() == 1

    def stop() -> bool:
        looked.set()
        return asked.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def hear(number: int, frame: Any) -> None:
        asked.set()
        if alone and not looked.is_set():
            raise Stopped(BEFORE_THE_FIRST)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        with _second_interrupt():
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _second_interrupt() -> Iterator[None]:
    """The second Ctrl-C ends the process. A thread waits for it, because Python's own handlers run in the main thread,
    between two operations, and one operation may be to compile a step."""
    ours, pythons = socket.socketpair()

    def listen() -> None:
        count = 0
        while numbers := ours.recv(64):
            count += numbers.count(signal.SIGINT)
            if count > 1:
                os._exit(128 + signal.SIGINT)
            if signal.SIGINT in numbers:
                print("stopping; Ctrl-C once more ends at once", file=sys.stderr, flush=True)

    with ours, pythons:
        pythons.setblocking(False)
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            pythons.shutdown(socket.SHUT_WR)  # ends the thread
            listener.join()


class Agreement:
    """Flags that become true for all processes at the same step, soon after one raised them, while no device waits.

    They go over the service through which JAX's processes have found each other (`board`: its key-value store), not
    over the devices, where a question would be answered only after all steps that were dispatched before it. A process
    that raises a flag in step s writes it down for step t, the next multiple of AGREE_EVERY from s + 2 on; in step t
    all read what is written for it. Nothing can come later: who has come to step t has the metrics of step t - 1, so
    the writer had begun that step, after it had written in a step before. One process needs no board, and agrees at
    once."""

    counted = itertools.count()  # one after another in all processes, so that their numbers are the same

    def __init__(self, board: Any = None):
        self.board, self.folder = board, f"transformer/agreement/{next(Agreement.counted)}"
        self.due: dict[str, int] = {}  # by flag, the last step that it was written for

    def __call__(self, step: int, **flags: bool) -> dict[str, bool]:
        """Each flag, as agreed for this step. Call it in every step, after the metrics of the one before have come."""
        if self.board is None:
            return flags
        for name, raised in flags.items():
            if raised and self.due.get(name, 0) < step:
                self.due[name] = -(-(step + 2) // AGREE_EVERY) * AGREE_EVERY
                self.board.key_value_set(f"{self.folder}/{self.due[name]}/{name}", "", allow_overwrite=True)
        if step % AGREE_EVERY:
            return dict.fromkeys(flags, False)
        written = {key.rpartition("/")[2] for key, _ in self.board.key_value_dir_get(f"{self.folder}/{step}/")}
        return {name: name in written for name in flags}


def agreement() -> Agreement:
    """That of this run's processes; all of them make it."""
    return Agreement(distributed.global_state.client if jax.process_count() > 1 else None)


def every_process(flag: bool) -> bool:
    """Whether the flag is true in all processes."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).all())
