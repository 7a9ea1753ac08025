"""How the rows of a table are split: by files, by a hash of the example, or by sizes (`data.split`)."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from transformer.data.sources.source import SPLIT_ORDER
from transformer.errors import UserError

DEFAULT = (90, 5, 5)  # percent, by a hash
KEPT = 5  # percent of train that are kept for validation, where files name train and not validation


class Rule(NamedTuple):
    """How rows are split. `shares` are percent of train, validation and test, or counts of rows in that order."""

    kind: str  # "files", "hash", "percent" or "counts"
    shares: tuple[float, ...] = DEFAULT

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that it makes."""
        return SPLIT_ORDER[: len(self.shares)] if self.kind != "files" else SPLIT_ORDER

    def hashed(self, text: str) -> str:
        """The split of a text by its hash, however its accents are written, so that the same text is never in two."""
        shares = [round(share) for share in self.shares]
        step = 5 if not any(share % 5 for share in shares) else 1
        place = _number(text) % (100 // step) * step
        for split, share in zip(self.splits[1:], shares[1:], strict=True):
            if place < share:
                return split
            place -= share
        return "train"

    def ranked(self, texts: Iterable[str]) -> dict[str, str]:
        """The split of each text, where they are so few that `hashed` leaves a split without any: the texts of the
        lowest hashes are of the later splits, at least one of each."""
        order = sorted({unicodedata.normalize("NFC", text) for text in texts}, key=_number)
        found, first = dict.fromkeys(order, "train"), 0
        for split, share in zip(self.splits[1:], self.shares[1:], strict=True):
            count = max(1, round(share / 100 * len(order)))
            found |= dict.fromkeys(order[first : first + count], split)
            first += count
        return found

    def counts(self, total: int) -> tuple[int, ...]:
        """How many of `total` rows each split has, in order."""
        if self.kind == "counts":
            return tuple(int(share) for share in self.shares)
        ends = [int(total * sum(self.shares[: number + 1]) / 100) for number in range(len(self.shares))]
        return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def _number(text: str) -> int:
    digest = hashlib.sha256(unicodedata.normalize("NFC", text).encode()).digest()
    return int.from_bytes(digest[:8], "big")


BY_FILES, BY_HASH = Rule("files"), Rule("hash")


def parse(said: str, files_say: bool) -> Rule:
    """The rule of `data.split`; `files_say`: the names of the files say the split of each. UserErrors: it is no rule,
    or by files that do not say it."""
    kind, _, rest = said.partition(":")
    if kind == "" and not rest:
        return BY_FILES if files_say else BY_HASH
    if kind == "files" and not rest:
        if not files_say:
            raise UserError(
                "data.split='files', and the names of data.files say no split: write train=FILE, validation=FILE and "
                "test=FILE."
            )
        return BY_FILES
    parts = rest.split("/") if rest else [f"{share}%" for share in DEFAULT]
    percent = kind == "hash" or all(part.endswith("%") for part in parts)
    numbers = [part.removesuffix("%") for part in parts]
    right = kind in ("hash", "sizes") and len(parts) in (2, 3) and all(re.fullmatch(r"\d+", each) for each in numbers)
    shares = tuple(float(each) for each in numbers) if right else ()
    if not right or (percent and sum(shares) != 100) or not shares[0]:
        raise UserError(
            f"data.split={said!r} is no rule: write 'files', 'hash:90/5/5' (percent, by a hash of the example), "
            "'sizes:80%/10%/10%' (percent, in order) or 'sizes:9000/500/500' (rows, in order)."
        )
    return Rule("hash" if kind == "hash" else "percent" if percent else "counts", shares)


def cut(counts: Sequence[int], first: int, count: int) -> list[tuple[str, int, int]]:
    """Where rows first, ..., first + count - 1 go, of splits with so many rows each: (split, start, stop) in these
    rows. Rows after the last split go nowhere."""
    found, begin = [], 0
    for split, size in zip(SPLIT_ORDER, counts, strict=False):
        start, stop = max(begin, first), min(begin + size, first + count)
        if start < stop:
            found.append((split, start - first, stop - first))
        begin += size
    return found
