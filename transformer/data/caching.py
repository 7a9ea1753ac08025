"""The cache folder: what takes long is made once, whole or not at all, by one process at a time."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformer.config import DataConfig
from transformer.errors import UserError


def cache_root(data: DataConfig) -> Path:
    """The folder of prepared data, vocabularies and tokens; it exists. UserError: it cannot be made."""
    root = Path(data.cache or "~/.cache/transformer").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache={root} cannot be made ({error.strerror}): name a folder that you may write."
        ) from error
    return root


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the right to make `path`, among all processes of the machine, and sweeps up what a killed one left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX)  # the lock goes with the handle, even when the process is killed
        for stale in path.parent.glob(f".{path.name}.*.part"):
            remove(stale)
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling to write (a file or a folder), and moves it to `path` once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
