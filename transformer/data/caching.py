"""The cache folder: each entry is made once, completely or not at all, by one process at a time."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import inspect
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.errors import UserError


def cache_root(data: DataConfig) -> Path:
    """The folder of prepared data, vocabularies and tokens, created if necessary. UserError: it cannot be made."""
    root = Path(data.cache or "~/.cache/transformer").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache={root} cannot be made ({error.strerror}): name a folder that you may write."
        ) from error
    return root


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
    makes it while others wait. Where `make` fails or is killed, there is no folder."""
    path = key.path
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


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock for making `path`, among all processes of the machine, and removes what a killed process left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX)  # released with the handle, even if the process is killed
        for stale in path.parent.glob(f".{path.name}.*.part"):
            remove(stale)
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling path to write to (a file or a folder), and moves it to `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
