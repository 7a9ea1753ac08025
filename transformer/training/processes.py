"""What a run of one or more processes needs: joining them, a lock on the folder, SIGTERM, and agreement on flags."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer.errors import UserError
from transformer.training.lock import only_process_in

AGREE_EVERY = 8  # steps between agreements of several processes; each costs a round trip


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
    """`lock.only_process_in` for a run: its first process holds the lock for all."""
    with contextlib.nullcontext() if jax.process_index() else only_process_in(workdir):
        yield


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come (clusters send it before they reclaim a machine). Signals reach the
    main thread only: in any other thread it is always False."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def any_process(step: int, *flags: bool) -> tuple[bool, ...]:
    """Each flag, true if it is true in any process. Several processes agree at the same steps only (AGREE_EVERY)."""
    if jax.process_count() == 1:
        return flags
    if step % AGREE_EVERY:
        return (False,) * len(flags)
    return tuple(bool(flag) for flag in multihost_utils.process_allgather(np.asarray(flags)).any(axis=0))


def every_process(flag: bool) -> bool:
    """Whether the flag is true in all processes."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).all())
