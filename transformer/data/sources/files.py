"""Reads the user's folders, compressed files, texts and lines; every error is a UserError of one sentence."""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow

from transformer.config import DataConfig
from transformer.errors import UserError

Told = Callable[[int], Any]  # is called with the bytes that were read of a file, for a progress bar
BLOCK = 2**22  # bytes that are read together


def _zstd(stream: Any) -> BinaryIO:
    # Python itself reads this format from 3.14 on.
    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream), "zstd"), BLOCK))


ENDINGS = ("", ".gz", ".bz2", ".xz", ".zst")  # of files that are read
# The first bytes of a file -> its format and what reads it; None: it has to be unpacked first.
FORMATS: dict[bytes, tuple[str, Callable[[Any], Any] | None]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    **{b"BZh%d1AY&SY" % level: ("bzip2", bz2.open) for level in range(1, 10)},
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"PK\x03\x04": ("zip", None),
    b"(\xb5/\xfd": ("zstd", _zstd),
    b"\x04\x22M\x18": ("lz4", None),
    b"7z\xbc\xaf\x27\x1c": ("7z", None),
    b"Rar!\x1a\x07": ("rar", None),
}
WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins as UTF-16 does
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
JSON_ENDINGS = {".json", ".jsonl", ".ndjson"}


def folder_of(data: DataConfig, form: str) -> Path:
    """The folder `data.dir`; `form` says what it should hold. UserError: none is named, or it does not exist."""
    if not data.dir:
        raise UserError(f"{data.name} needs data.dir: name the folder that holds {form}.")
    folder = Path(data.dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.dir={data.dir} is no folder: name the one that holds {form}.")
    return folder


def existing(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The first of the names, plain or compressed, that exists in one of the folders. UserError: none does."""
    for folder in folders:
        for name in names:
            for path in (folder / f"{name}{ending}" for ending in ENDINGS):
                if path.is_file():
                    return path
    others = f" (nor as {', '.join(names[1:])})" if len(names) > 1 else ""
    raise UserError(
        f"There is no file {folders[-1] / names[0]}, plain or as .gz, .bz2, .xz or .zst{others}: add it or change "
        "data.dir."
    )


@contextlib.contextmanager
def opened(path: Path, told: Told | None = None) -> Iterator[BinaryIO]:
    """A binary stream of a file, plain or compressed by gzip, bzip2, xz or zstd. UserErrors, also while it is read: it
    is compressed in another way, damaged, or cannot be read."""
    form = "plain"
    try:
        with io.BufferedReader(_Counted(path, told), BLOCK) as raw:
            head = raw.peek(max(map(len, FORMATS)))
            form, opener = next((row for start, row in FORMATS.items() if head.startswith(start)), (form, _plain))
            if opener is None:
                raise UserError(f"{path} is a {form} archive: unpack it, or compress it by gzip, bzip2, xz or zstd.")
            with opener(raw) as stream:
                yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from error
        raise UserError(f"{path} is a damaged {form} file ({error}): fetch it again.") from error


class _Counted(io.FileIO):
    """A file that says how much of it was read."""

    def __init__(self, path: Path, told: Told | None) -> None:
        super().__init__(path, "rb")
        self._told = told

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if self._told and count:
            self._told(count)
        return count


def _plain(stream: Any) -> Any:
    return contextlib.nullcontext(stream)


def read_bytes(path: Path, told: Told | None = None) -> bytes:
    """The content of a file, decompressed. UserErrors: see `opened`."""
    with opened(path, told) as stream:
        return stream.read()


def read_text(path: Path, told: Told | None = None) -> str:
    """The text of a file, decompressed and without a byte order mark. UserErrors: it holds NUL characters, is not UTF-8
    (with the line); see `opened`."""
    return _decoded(path, read_bytes(path, told), 1)


def text_of(path: Path, told: Told | None = None) -> Iterator[str]:
    """The text of a file, decompressed and without a byte order mark, in pieces of at most about BLOCK bytes. Its lines
    end with line feeds, whatever they end with in the file, as in Python's text mode. UserErrors: see `read_text`."""
    held, line = "", 1
    with opened(path, told) as stream:
        for content in iter(lambda: stream.read(BLOCK), b""):
            content += b"" if len(content) < BLOCK else stream.readline(BLOCK)
            text = _decoded(path, _whole_characters(content, stream), line)
            line += text.count("\n")
            text = held + text
            held = text[-1:] if text.endswith("\r") else ""  # of "\r\n", perhaps
            yield text[: len(text) - len(held)].replace("\r\n", "\n").replace("\r", "\n")
    if held:
        yield "\n"


def _whole_characters(content: bytes, stream: BinaryIO) -> bytes:
    """The content with the rest of its last character, where a line is so long that it was cut within one."""
    while len(content) >= BLOCK and content[-1] >= 0x80 and not _ends_whole(content[-4:]):
        following = stream.read(1)
        if not following:
            break
        content += following
    return content


def _ends_whole(tail: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    decoder.decode(tail)
    return not decoder.getstate()[0]


def raw_lines(path: Path, told: Told | None = None) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file, some at a time, each list with the number of its first line. Only a line feed ends a line,
    since U+2028 and similar characters belong to the text. UserErrors: it is empty, holds NUL characters, is not UTF-8
    (with the line), has carriage returns in place of line feeds; see `opened`."""
    number, returns = 1, False
    with opened(path, told) as stream:
        for content in iter(lambda: stream.read(BLOCK), b""):
            if not content.endswith(b"\n"):
                content += stream.readline()  # to the end of the line
            lines = _decoded(path, content, number).split("\n")
            if lines[-1] == "":
                lines.pop()  # nothing follows the last line feed
            returns = number == 1 and "\r" in (lines or [""])[0].strip()
            yield number, lines
            number += len(lines)
            returns = returns and number == 2
    if number == 1:
        raise UserError(f"{path} is empty: give a file with one example a line.")
    if returns:
        raise UserError(f"{path} ends its lines with carriage returns alone: convert it, for example with mac2unix.")


def lines_of(path: Path, told: Told | None = None) -> Iterator[str]:
    """The lines of a file without surrounding white space; see `raw_lines`."""
    for _, lines in raw_lines(path, told):
        yield from map(str.strip, lines)


def _decoded(path: Path, content: bytes, first: int) -> str:
    """`content` of a file as text; it begins in line `first`."""

    def line_at(place: int) -> int:
        return first + content.count(b"\n", 0, place)

    if first == 1:
        for mark, name in WIDE.items():
            if content.startswith(mark):
                raise UserError(f"{path} is {name}, not UTF-8: convert it, for example with iconv -f {name} -t UTF-8.")
        content = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        line = line_at(content.index(b"\0"))
        raise UserError(
            f"{path} has a NUL character in line {line}, which is in no text: convert it, for example with iconv "
            "-f UTF-16LE -t UTF-8 if it is UTF-16, or take the character out."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line_at(error.start)
        raise UserError(f"{path} is not valid UTF-8 in line {line}: convert it, for example with iconv.") from error


def refuse_json(path: Path) -> None:
    """UserError: by its name, a file where text is read as it stands is JSON."""
    if JSON_ENDINGS.intersection(path.suffixes[-2:]):
        raise UserError(
            f"{path} is JSON, which would be read as it stands: read it with data.name=table and data.files."
        )


def is_json(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
