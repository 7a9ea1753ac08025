"""An exclusive lock on a folder. It does not import JAX, which takes seconds."""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from transformer.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # Lustre, FUSE, some NFS


@contextlib.contextmanager
def only_process_in(workdir: Path) -> Iterator[None]:
    """Makes a folder and locks it for this process; the lock ends with the process. Where the file system has no locks,
    that is said once. What this start makes, the lock and folders, is removed again where no file was written into it;
    what was there stays. UserError: another process holds the lock, or the folder cannot be written to."""
    made: list[Path] = []  # outermost first
    try:
        try:
            _make(workdir, made)
            before = set(workdir.iterdir())
            handle = _open_and_lock(workdir)
        except OSError as error:
            raise UserError(f"cannot write to --workdir={str(workdir)!r}: {error.strerror}") from error
        with handle:
            try:
                yield
            finally:
                _clear(workdir, before)
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # something was written into it
                path.rmdir()


def _make(workdir: Path, made: list[Path]) -> None:
    """Makes a folder and those above it, and adds to the list what it made."""
    missing = [path for path in (workdir, *workdir.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.mkdir()
            made.append(path)
    if not workdir.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _open_and_lock(workdir: Path) -> TextIO:
    """The open file, which is locked. Its last holder may remove it between the two: then it is made anew."""
    path = workdir / ".lock"
    there = path.exists()
    while True:
        handle = open(path, "a")  # noqa: SIM115
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle
        except BlockingIOError as error:
            handle.close()
            raise UserError(
                f"another process is at work in --workdir={str(workdir)!r}: wait for it, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno in NO_LOCKS:
                told = f"the file system of {str(workdir)!r} has no locks ({error.strerror}): start no second process"
                print(f"{told} in it", file=sys.stderr, flush=True)
                return handle
            handle.close()
            if not there:
                path.unlink()
            raise
        handle.close()


def _clear(workdir: Path, before: set[Path]) -> None:
    """Removes new folders that hold no file, and the lock, if it is new and nothing else is."""
    lock = workdir / ".lock"
    for folder in set(workdir.iterdir()) - before:
        for place, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(place)
    if set(workdir.iterdir()) - before == {lock}:
        lock.unlink()
