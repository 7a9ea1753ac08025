"""Pieces of one character: texts written in a closed alphabet, and the tokenizers `characters` and `bytes`.

A closed alphabet makes a tokenizer lossless on any text: a character outside the alphabet is written as its UTF-8
bytes, each of which is a letter. Those 256 letters are the last private-use characters of Unicode; where a text itself
holds one of them, or `SPACE`, that character is written as bytes too.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing import Self

SPACE = "▁"  # U+2581 replaces the space, so that only names of special tokens hold one
_FIRST_BYTE = 0x10FF00
# Where a text can be cut so that its parts have the same tokens as the whole: a match separates two parts, and what it
# holds belongs to neither.
ANYWHERE = re.compile(r"(?<=.)(?=.)", re.DOTALL)
BEFORE_A_SPACE = re.compile(r"(?<=\S)(?=[ \n])")
AT_A_SPACE = re.compile(r"(?<=\S) (?=\S)")  # of kinds that write a text after a space of their own
BYTES = tuple(chr(_FIRST_BYTE + byte) for byte in range(256))


class Alphabet(dict[int, str]):
    """The table of `str.translate` that writes any text in `letters` and `BYTES`, the space as `SPACE`.

    >>> Alphabet("ab")  # doctest: +SKIP
    >>> "abç".translate(Alphabet("ab")) == "ab" + BYTES[0xC3] + BYTES[0xA7]
    True
    """

    def __init__(self, letters: Iterable[str]) -> None:
        super().__init__({ord(letter): SPACE if letter == " " else letter for letter in letters})

    def __missing__(self, code: int) -> str:
        return "".join(BYTES[byte] for byte in chr(code).encode())


def bytes_of(piece: str) -> bytes:
    """The bytes of a piece; a piece of byte letters may be only a part of a character."""
    return b"".join(
        bytes([ord(letter) - _FIRST_BYTE]) if letter >= BYTES[0] else b" " if letter == SPACE else letter.encode()
        for letter in piece
    )


def frequent(texts: Iterable[str], most: int, coverage: float = 1.0) -> str:
    """The letters for `texts`, in Unicode order: the most frequent, at most `most`. The rarest are left to the bytes as
    soon as the others cover `coverage` of all characters."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for reserved in (SPACE, *BYTES):
        counts.pop(reserved, None)
    enough, covered, letters = coverage * counts.total(), 0, []
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]:
        if covered >= enough:
            break
        letters.append(letter)
        covered += count
    return "".join(sorted(letters))


class Characters:
    """One id for each character of the training texts, or the most frequent if there are too many. Ids: special tokens,
    256 bytes, letters in Unicode order. Lossless: all other characters are bytes."""

    fewest: ClassVar[tuple[int, str]] = (256, "the 256 bytes")
    cut = ANYWHERE

    def __init__(self, specials: Sequence[str], letters: str) -> None:
        self._letters = letters
        self._alphabet = Alphabet(letters)
        pieces = [*BYTES, *letters.replace(" ", SPACE)]
        self._ids = {piece: number for number, piece in enumerate(pieces, start=len(specials))}
        self._bytes = [b""] * len(specials) + [bytes_of(piece) for piece in pieces]
        self.vocab_size = len(self._bytes)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> "Self":
        return cls(specials, frequent(texts, vocab_size - len(specials) - 256))

    @classmethod
    def from_state(cls, state: dict[str, Any], specials: Sequence[str]) -> "Self":
        return cls(specials, state["letters"])

    def state(self) -> dict[str, Any]:
        return {"letters": self._letters}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._ids[letter] for letter in text.translate(self._alphabet)] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")


class Bytes(Characters):
    """The 256 bytes of UTF-8; nothing is learned."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> "Self":
        del texts, vocab_size
        return cls(specials, "")
