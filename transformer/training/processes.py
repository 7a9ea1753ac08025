"""What keeps a run to itself and lets it stop in good order: a lock on its folder, SIGTERM, and the other processes of
the run."""

import contextlib
import fcntl
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer.config import UserError

AGREE_EVERY = 8  # steps between the questions that several processes ask each other; each costs a round trip


def join(coordinator: str | None, count: int | None, index: int | None, seconds: int) -> None:
    """Makes this process the `index`-th of `count` of one run, whose first process listens at `coordinator`, host:port.

    Before any device is used. What is None is found out from the environment (SLURM, Open MPI and GKE are known to
    JAX). On CPUs, processes talk over gloo. Raises UserError, with their numbers, where processes do not join in time.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=seconds)
    except (RuntimeError, ValueError) as error:
        text = str(error)
        missing = sorted({int(number) for number in re.findall(r"task:(\d+)", text.partition("timed out task")[2])})
        if missing:
            named = f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))} of {count} did not join"
        elif "DEADLINE_EXCEEDED" in text or "UNAVAILABLE" in text:
            named = f"process 0 did not answer at {coordinator}"
        else:
            raise UserError(
                f"the processes of the run cannot be found out ({text.strip().splitlines()[0]}): give --coordinator, "
                "--processes and --process"
            ) from error
        raise UserError(f"{named} within {seconds} s: start all processes, with the same --coordinator") from error


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Holds a folder, which is made, for this run; the lock goes with the process, however it ends.

    Raises UserError where another run holds it, or where it cannot be written to.
    """
    if jax.process_index():  # the first process holds it for all
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to --workdir={str(workdir)!r}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is training in --workdir={str(workdir)!r}: wait for it, or choose another folder"
            ) from error
        yield


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come (as a cluster sends it before it takes a machine back).

    Signals reach the main thread only: anywhere else it never has.
    """
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
    """Each flag, true where it is in any process. Several processes ask each other at the same steps."""
    if jax.process_count() == 1:
        return flags
    if step % AGREE_EVERY:
        return (False,) * len(flags)
    return tuple(bool(flag) for flag in multihost_utils.process_allgather(np.asarray(flags)).any(axis=0))
