"""An exclusive lock on a folder. It does not import JAX, which takes seconds."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformer.errors import UserError


@contextlib.contextmanager
def only_process_in(workdir: Path) -> Iterator[None]:
    """Makes a folder and locks it for this process; the lock ends with the process. A folder that stayed empty is
    removed. UserError: another process holds it, or it cannot be written to."""
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
                f"another process is at work in --workdir={str(workdir)!r}: wait for it, or choose another folder"
            ) from error
        try:
            yield
        finally:
            if [path.name for path in workdir.iterdir()] == [".lock"]:
                shutil.rmtree(workdir, ignore_errors=True)
