"""The cache folder: each entry is made once, completely or not at all, by one process at a time.

An entry that is there is read without a lock, so that a cache may be read-only. What is missing in a folder that cannot
be written is made in a spare folder among the temporary files.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT = "~/.cache/transformer"
FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_root(data: DataConfig) -> Path:
    """The folder of prepared data, vocabularies and tokens, created if necessary. Without `data.cache` and without a
    home folder that can be written, the spare one. UserError: `data.cache` cannot be made."""
    try:
        root = Path(data.cache or DEFAULT).expanduser()
        root.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        if not data.cache:
            return _spared(Path(DEFAULT))
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.cache={data.cache} cannot be made ({reason}): name a folder that you may write."
        ) from error
    return root


def writable(folder: Path) -> Path:
    """The folder, created if necessary, or its spare where no file can be written in it."""
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except (OSError, RuntimeError):
        return _spared(folder)
    return folder


def usable(path: Path) -> Path:
    """The path of an entry, if it can be read, or else made; or else its place in the spare folder."""
    if os.access(path, os.R_OK, effective_ids=True):
        return path
    return (_spared(path.parent) if os.path.lexists(path) else writable(path.parent)) / path.name


def _spared(folder: Path) -> Path:
    """The spare of a folder; a line names both."""
    _tell(str(folder))
    place = spare() / folder.name
    place.mkdir(exist_ok=True)
    return place


@functools.cache
def _tell(folder: str) -> None:
    logger.warning("%s cannot be written: what is missing there is kept in %s", folder, spare())


def spare() -> Path:
    """A folder among the temporary files that this user alone can write. UserError: none can be made."""
    try:
        folder = Path(tempfile.gettempdir()) / f"transformer-{os.geteuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        return folder if own else _spare_of_process()
    except OSError as error:
        raise UserError(
            f"Neither the cache nor a folder of temporary files can be written ({error.strerror}): name a folder in "
            "data.cache."
        ) from error


@functools.cache
def _spare_of_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="transformer-"))


@dataclasses.dataclass(frozen=True)
class Key:
    """Everything that a cache entry depends on: where any of it changes, the entry is made anew, in another folder.

    `inputs` are what it is made from, as JSON: fingerprints, names, sizes. `code` are the modules, classes and
    functions that make it, compared by source text. `libraries` are packages that the result depends on, compared by
    version.
    """

    shelf: Path  # the folder of all entries of this kind, inside `cache_root`
    inputs: Sequence[Any]
    code: Sequence[Any]
    libraries: Sequence[str] = ()

    @property
    def path(self) -> Path:
        code = [inspect.getsource(part) for part in self.code]
        versions = [(name, importlib.metadata.version(name)) for name in self.libraries]
        text = json.dumps([self.inputs, code, versions], sort_keys=True)
        return self.shelf / hashlib.sha256(text.encode()).hexdigest()[:24]


def cached(key: Key, make: Callable[[Path], None]) -> Path:
    """The folder of a key. Where there is none, `make` fills an empty folder, which is then moved there. One process
    makes it while others wait. Where `make` fails or is killed, there is no folder. UserError: the disk is full."""
    path = usable(key.path)
    if not path.exists():
        with locked(path):
            if not path.exists():
                with writing(path) as temporary:
                    temporary.mkdir()
                    make(temporary)
    return path


MAP_ABOVE = 2**28  # bytes


def load_array(path: Path) -> np.ndarray:
    """The array of an .npy file; above MAP_ABOVE it is memory-mapped."""
    return np.load(path, mmap_mode="r" if path.stat().st_size > MAP_ABOVE else None)


class ArrayWriter:
    """Writes an .npy file, as np.save does, some rows at a time, in constant memory: [rows, *shape] of a dtype."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._shape, self._dtype, self._rows = tuple(shape), np.dtype(dtype), 0
        self._header()

    def add(self, rows: np.ndarray) -> None:
        """Appends rows [n, *shape]."""
        if rows.shape[1:] != self._shape:
            raise ValueError(f"rows of shape {rows.shape[1:]}, not {self._shape}")
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._rows += len(rows)

    def close(self) -> None:
        """Writes the number of rows, for which the format leaves room in its header."""
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        about = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, about | {"shape": (self._rows, *self._shape)})


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock for making `path`, among all processes of the machine, and removes what a killed process left.
    Where the filesystem has no locks, or the lock is another user's file, there is none: the first to finish wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            handle = stack.enter_context(open(path.parent / f".{path.name}.lock", "w"))
            fcntl.lockf(handle, fcntl.LOCK_EX)  # released with the handle, even if the process is killed
            for stale in path.parent.glob(f".{path.name}.*.part"):
                remove(stale)
        yield


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether the lock for making `path` is free; then it is held as by `locked`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        free = True
        with contextlib.suppress(OSError):
            handle = stack.enter_context(open(path.parent / f".{path.name}.lock", "w"))
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for stale in path.parent.glob(f".{path.name}.*.part"):
                    remove(stale)
            except OSError as error:
                free = error.errno not in (errno.EACCES, errno.EAGAIN)  # or else there are no locks here
        yield free


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling path to write to (a file or a folder), and moves it to `path` if the block succeeds.
    UserError: the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError:
            if not path.is_dir():  # or else another process, without a lock, has made the same
                raise
    except Exception as error:
        if _is_full(error):
            raise UserError(
                f"There is no space left in {path.parent}: free some, or name a folder of another disk (data.cache)."
            ) from error
        raise
    finally:
        remove(temporary)


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised for, says that the disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it exists and may be deleted."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
