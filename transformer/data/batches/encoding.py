"""The token ids of shards: parts of a split of some hundred thousand texts, read and encoded in constant memory.

A shard is a folder with two files for each field: `N.tokens`, the ids of its texts one after another, and `N.offsets`,
int64, where each text begins, and the end.
"""

import codecs
import collections
import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from transformer.data.store import Texts
from transformer.data.tokenizers import Tokenizer

MOST_TEXTS = 2**18  # of a shard
MOST_BYTES = 2**26  # of a shard, all fields together; the text that exceeds it is in the next one
PIECE = 2**16  # bytes of a text that are encoded at once, where it can be cut
NEAR = 2**8  # characters at the end of a piece where a place to cut it is looked for first
TOGETHER = 2**18  # bytes that are encoded together; of 2**16 to 2**22 it is the fastest, by little
READ_TOGETHER = 2**12  # examples
NARROW = 2**16  # pieces of a vocabulary whose ids are stored in two bytes


class Shard(NamedTuple):
    """Texts first, ..., stop - 1 of a split. Where texts are cut, only the bytes `begin` to `end` of the column."""

    first: int
    stop: int
    begin: int | None = None
    end: int | None = None


def dtype_of(vocab_size: int) -> np.dtype[Any]:
    """What token ids are stored as."""
    return np.dtype(np.uint16 if vocab_size <= NARROW else np.int32)


# --- Where shards end


def shards_of(ends: Sequence[np.ndarray], members: Sequence[int]) -> list[Shard]:
    """The shards of texts whose fields end at `ends`: consecutive texts, as many as MOST_TEXTS and MOST_BYTES allow, at
    least one. `members`: the numbers of texts at which a shard ends in any case. Only few of `ends` are read."""
    shards, first = list[Shard](), 0
    for member in members:
        while first < member:
            begin = sum(int(own[first - 1]) if first else 0 for own in ends)
            low, high = first + 1, min(member, first + MOST_TEXTS)
            while low < high:  # the most texts within the limit
                middle = (low + high + 1) // 2
                within = sum(int(own[middle - 1]) for own in ends) - begin <= MOST_BYTES
                low, high = (middle, high) if within else (low, middle - 1)
            shards.append(Shard(first, low))
            first = low
    return shards


def cut_shards(texts: Texts, cut: re.Pattern[str], members: Sequence[int]) -> list[Shard]:
    """The shards of long texts: MOST_BYTES of them, to the next place where `cut` matches or a text ends."""
    shards, first = list[Shard](), 0
    for member in members:
        begin, last = texts.start(first), texts.start(member)
        while begin < last:
            end, following = _next_cut(texts, begin + MOST_BYTES, last, cut)
            first = int(np.searchsorted(texts.ends, begin, side="right"))
            stop = int(np.searchsorted(texts.ends, end, side="left")) + 1
            shards.append(Shard(first, stop, begin, end))
            begin = following
        first = member
    return shards


def _next_cut(texts: Texts, place: int, last: int, cut: re.Pattern[str]) -> tuple[int, int]:
    """Where a part ends that has at least the bytes up to `place`, and where the next one begins."""
    if place >= last:
        return last, last
    text_end = int(texts.ends[np.searchsorted(texts.ends, place, side="left")])
    while place < last and texts.values[place] & 0xC0 == 0x80:  # within a character
        place += 1
    size = PIECE
    while True:
        content = texts.values[place : min(place + size, text_end)].tobytes()
        text = codecs.getincrementaldecoder("utf-8")().decode(content)
        if found := cut.search(text):
            before, after = (len(text[:index].encode()) for index in found.span())
            return place + before, place + after
        if place + size >= text_end:
            return text_end, text_end
        size *= 2


# --- Reading


class Part(NamedTuple):
    """A text, or a part of one; `last`: whether the text ends with it."""

    text: str
    last: bool


@dataclasses.dataclass(frozen=True)
class Column:
    """Where the texts of a field are stored: the two files of `Texts`. It is read without a memory map, whose pages
    would count as memory of the process."""

    values: Path
    ends: Path

    @classmethod
    def of(cls, texts: Texts | None) -> Self | None:
        """The files that a column maps; None where it maps none."""
        if isinstance(texts, Texts) and isinstance(texts.values, np.memmap) and isinstance(texts.ends, np.memmap):
            return cls(*(Path(str(array.filename)) for array in (texts.values, texts.ends)))
        return None

    def parts(self, shard: Shard, cut: re.Pattern[str] | None) -> Iterator[list[Part]]:
        """The texts of a shard in order, about TOGETHER bytes at a time."""
        before = max(0, shard.first - 1)
        read = np.fromfile(self.ends, np.int64, shard.stop - before, offset=8 * before)
        ends = read[shard.first - before :]
        begin = int(read[0]) if shard.first else 0
        if shard.begin is not None and shard.end is not None:
            begin, ends = shard.begin, np.minimum(ends, shard.end)
        number = 0
        with open(self.values, "rb", buffering=0) as file:
            file.seek(begin)
            while number < len(ends):
                stop = int(np.searchsorted(ends, begin + TOGETHER, side="right"))
                if stop > number:
                    content = _all(file.read, int(ends[stop - 1]) - begin)
                    limits = [0, *(ends[number:stop] - begin).tolist()]
                    yield [Part(content[a:b].decode(), True) for a, b in itertools.pairwise(limits)]
                else:
                    stop = number + 1
                    yield from _together(_pieces(file.read, int(ends[number]) - begin, cut))
                number, begin = stop, int(ends[stop - 1])


def _pieces(read: Callable[[int], bytes], size: int, cut: re.Pattern[str] | None) -> Iterator[Part]:
    """A text of `size` bytes in pieces of about PIECE bytes, or whole where it cannot be cut."""
    if cut is None:
        yield Part(_all(read, size).decode(), True)
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, searched = "", 0
    while size:
        content = _all(read, min(size, PIECE))
        size -= len(content)
        text += decoder.decode(content, final=not size)
        found = _last(cut, text, searched) if size else None
        if found is not None:
            yield Part(text[: found.start()], False)
            text, searched = text[found.end() :], 0
        else:
            searched = max(0, len(text) - 1)
    yield Part(text, True)


def _last(cut: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
    """The last match that begins at `start` or later."""
    for place in (max(start, len(text) - NEAR), start):
        if found := collections.deque(cut.finditer(text, place), maxlen=1):
            return found[0]
    return None


def _all(read: Callable[[int], bytes], size: int) -> bytes:
    """`size` bytes; a single read gives two gigabytes at most."""
    content = bytearray()
    while len(content) < size:
        more = read(size - len(content))
        if not more:
            raise EOFError(f"a file of texts ends {size - len(content)} bytes too early")
        content += more
    return bytes(content)


def _together(parts: Iterator[Part]) -> Iterator[list[Part]]:
    while some := list(itertools.islice(parts, TOGETHER // PIECE)):
        yield some


# --- Encoding


@dataclasses.dataclass(frozen=True)
class EncodeColumns:
    """Makes the shards of columns (`preparing.Make`), in any process."""

    columns: tuple[Column, ...]
    shards: tuple[Shard, ...]
    tokenizer: Tokenizer

    def __call__(self, number: int, folder: Path, told: Callable[[int], Any]) -> None:
        for place, column in enumerate(self.columns):
            with Appended(folder, place, self.tokenizer) as file:
                for parts in column.parts(self.shards[number], self.tokenizer.cut):
                    told(file.add(parts))


@dataclasses.dataclass(frozen=True)
class EncodeExamples:
    """Makes the shards of examples that only this process can read."""

    examples: Any  # of a split: `many`
    fields: tuple[str, ...]
    shards: tuple[Shard, ...]
    tokenizer: Tokenizer

    def __call__(self, number: int, folder: Path, told: Callable[[int], Any]) -> None:
        shard = self.shards[number]
        with contextlib.ExitStack() as stack:
            places = range(len(self.fields))
            files = [stack.enter_context(Appended(folder, place, self.tokenizer)) for place in places]
            for start in range(shard.first, shard.stop, READ_TOGETHER):
                chunk = self.examples.many(range(start, min(start + READ_TOGETHER, shard.stop)))
                for field, file in zip(self.fields, files, strict=True):
                    file.add([Part(example[field], True) for example in chunk])
                told(len(chunk))


class Appended:
    """The two files of a field of a shard, in writing."""

    def __init__(self, folder: Path, place: int, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._dtype = tokenizer, dtype_of(tokenizer.vocab_size)
        self._tokens = open(folder / f"{place}.tokens", "wb")  # noqa: SIM115 - closed by `close`
        self._offsets = open(folder / f"{place}.offsets", "wb")  # noqa: SIM115
        self._count = 0
        self._offsets.write(np.int64(0).tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, parts: Sequence[Part]) -> int:
        """Encodes and appends the next parts; returns their bytes."""
        encoded = self._tokenizer.encode_batch([part.text for part in parts])
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter(itertools.chain.from_iterable(encoded), self._dtype, int(lengths.sum()))
        ends = self._count + np.cumsum(lengths)
        self._tokens.write(ids.tobytes())
        self._offsets.write(ends[np.fromiter((part.last for part in parts), bool, len(parts))].tobytes())
        self._count += len(ids)
        return sum(len(part.text.encode()) for part in parts)

    def close(self) -> None:
        self._tokens.close()
        self._offsets.close()
