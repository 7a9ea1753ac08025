"""Paths as people write them: `~` is expanded, and what is no path of this machine is refused."""

import os
import re
from pathlib import Path

from transformer.errors import UserError

LONGEST = 3800  # bytes; Linux takes 4095, and Orbax's temporary files need about 200 below a workdir


def expanded(path: str | Path, name: str) -> str:
    """The path with `~` and `~user` replaced by the home folder; `name` is its flag or config key. UserError: it is a
    URL or no UTF-8, or there is no such user."""
    text = str(path)
    if "://" in text or re.match(r"[A-Za-z][\w+.:-]+:/", text):  # a Path turns the second slash of gs:// into none
        raise UserError(
            f"{name}={text!r} is a URL, and only files of this machine are read and written: mount it and name the "
            "folder, or copy it"
        )
    if "\0" in text or not _is_utf8(text):
        raise UserError(f"{name}={text!r} is no name in UTF-8: rename it")
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise UserError(f"{name}={text!r} names a user whom this machine does not know: write ./{text} for such a name")
    return found


def local(path: str | Path, name: str) -> Path:
    """`expanded`, as a Path."""
    return Path(expanded(path, name))


def for_checkpoints(path: str | Path, name: str) -> Path:
    """The folder of a run, or one for prepared data. UserError: as `local`, or a part of the whole path has characters
    that Orbax, TensorStore or TFDS read as a pattern or a URL: what they save there, they do not find again."""
    if not str(path):
        raise UserError(f"{name} is empty: name a folder")
    folder = local(path, name)
    whole = str(folder.absolute())
    if found := re.search(r"[*?\[\]\\]|:(?=/|$)", whole):
        raise UserError(
            f"{name}={str(path)!r} has {found[0]!r} in {whole!r}, where checkpoints would not be found again: choose a "
            "folder without any of * ? [ ] \\, and without a colon at the end of a name"
        )
    if len(os.fsencode(whole)) > LONGEST:
        raise UserError(f"{name} has a path of {len(os.fsencode(whole))} bytes: choose one of at most {LONGEST}")
    return folder


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
