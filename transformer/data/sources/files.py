"""Reads the user's folders, gzipped files and lines; every error is a UserError of one sentence."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from transformer.config import DataConfig
from transformer.errors import UserError


def folder_of(data: DataConfig, form: str) -> Path:
    """The folder `data.dir`; `form` says what it should hold. UserError: none is named, or it does not exist."""
    if not data.dir:
        raise UserError(f"{data.name} needs data.dir: name the folder that holds {form}.")
    folder = Path(data.dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.dir={data.dir} is no folder: name the one that holds {form}.")
    return folder


def existing(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The first of the names, plain or gzipped, that exists in one of the folders. UserError: none does."""
    for folder in folders:
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    others = f" (nor as {', '.join(names[1:])})" if len(names) > 1 else ""
    raise UserError(f"There is no file {folders[-1] / names[0]}, plain or as .gz{others}: add it or change data.dir.")


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if it is gzipped. UserError: it is damaged, or cannot be read."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}): fetch it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from error


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, plain or gzipped, without surrounding white space. Only a line feed ends a line, since
    U+2028 and similar characters belong to the text. UserErrors: the file is empty, damaged, not UTF-8 (with the line),
    or cannot be read."""
    number = 0
    try:
        with opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8 in line {number}: convert it, for example with iconv.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}): fetch it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from error
    if not number:
        raise UserError(f"{path} is empty: give a file with one example a line.")


def opened(path: Path) -> BinaryIO:
    """A binary stream of a file, plain or gzipped."""
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")  # type: ignore[return-value]
