"""Examples on disk, column by column and memory-mapped: what the user's own files are prepared as.

A folder holds, for each split and column, the values one after another (`SPLIT.COLUMN.values`) and, where they differ
in size, the end of each (`SPLIT.COLUMN.ends`, int64). So an example of a corpus of any size is read in constant memory,
and any range of them can be read by another process. `store.json` names the columns and counts the examples.
"""

import dataclasses
import hashlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ABOUT = "store.json"
FORM = "3:"  # of the fingerprint: see `transformer.data.sources.source.comparable`


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a column holds: texts ("text"), or arrays of one dtype. `shape` is that of each array; its first axis may be
    None, for any length. A number is an array of shape ()."""

    dtype: str
    shape: tuple[int | None, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether the values differ in size."""
        return self.dtype == "text" or None in self.shape

    def to_bytes(self, value: Any) -> bytes:
        return value.encode() if self.dtype == "text" else np.ascontiguousarray(value, self.dtype).tobytes()

    def from_bytes(self, content: np.ndarray) -> Any:
        """The value of its bytes [n], uint8: a str, an array, or a NumPy scalar."""
        if self.dtype == "text":
            return content.tobytes().decode()
        array = np.frombuffer(content.tobytes(), self.dtype)
        return array[0] if not self.shape else array.reshape([-1 if size is None else size for size in self.shape])

    @property
    def bytes_each(self) -> int:
        """Bytes of a value, where all have one size."""
        return np.dtype(self.dtype).itemsize * math.prod(size or 0 for size in self.shape)


TEXT, INTEGER = Kind("text"), Kind("int64")


class StoreWriter:
    """Writes a store into an empty folder, some examples at a time, in constant memory."""

    def __init__(self, folder: Path, columns: Mapping[str, Kind], splits: Sequence[str]) -> None:
        self._folder, self._columns, self._splits = folder, dict(columns), tuple(splits)
        self._written = {
            (split, name): _Written(folder, split, name, columns[name]) for split in splits for name in columns
        }
        self._members: dict[str, list[int]] = {split: [] for split in splits}

    @property
    def counts(self) -> dict[str, int]:
        """The examples of each split, by their first column."""
        first = next(iter(self._columns))
        return {split: self._written[split, first].count for split in self._splits}

    def add(self, split: str, values: Mapping[str, Any]) -> None:
        """Appends values to columns of a split. In the end, all columns have as many."""
        for name, column in values.items():
            kind = self._columns[name]
            if kind.varies or kind.shape:
                self._written[split, name].add([kind.to_bytes(value) for value in column])
            else:
                self._written[split, name].add_numbers(np.ascontiguousarray(column, kind.dtype))

    def extend(self, split: str, column: str, content: bytes) -> None:
        """Appends bytes to the value that `close_value` ends: a text that is too long to be held at once."""
        self._written[split, column].extend(content)

    def close_value(self, split: str, column: str) -> None:
        """Ends a value of `extend`."""
        self._written[split, column].close_value()

    def abandon(self) -> None:
        """Closes the files of a store that is written anew, from its beginning."""
        for written in self._written.values():
            written.close()

    def end_member(self) -> None:
        """Says that what follows is of another member of a mixture."""
        for split, ends in self._members.items():
            ends.append(self.counts[split])

    def close(self, **about: Any) -> str:
        """Finishes the files, and returns the fingerprint of every example of every split in order. `about`: plain JSON
        that `Store.about` returns; its `names` give the values a meaning (classes), and are part of the fingerprint."""
        wrong = {
            place: written.count for place, written in self._written.items() if written.count != self.counts[place[0]]
        }
        if wrong:
            raise ValueError(f"columns of different lengths: {wrong}, and {self.counts}")
        digests = [
            [split, name, self._columns[name].dtype, self._columns[name].shape, written.close()]
            for (split, name), written in self._written.items()
        ]
        text = json.dumps([digests, self._members, about.get("names")], sort_keys=True)
        fingerprint = FORM + hashlib.sha256(text.encode()).hexdigest()
        columns = {name: [kind.dtype, list(kind.shape)] for name, kind in self._columns.items()}
        found = {"columns": columns, "counts": self.counts, "members": self._members, "fingerprint": fingerprint}
        (self._folder / ABOUT).write_text(json.dumps(found | {"about": about}))
        return fingerprint


class _Written:
    """One column of a split that is being written."""

    def __init__(self, folder: Path, split: str, name: str, kind: Kind) -> None:
        self._end, self.count = 0, 0
        self._values = _Hashed(folder / f"{split}.{name}.values")
        self._ends = _Hashed(folder / f"{split}.{name}.ends") if kind.varies else None

    def add(self, contents: list[bytes]) -> None:
        self._values.write(b"".join(contents))
        self.count += len(contents)
        if self._ends is not None and contents:
            ends = self._end + np.cumsum([len(content) for content in contents], dtype=np.int64)
            self._ends.write(ends.tobytes())
            self._end = int(ends[-1])

    def add_numbers(self, numbers: np.ndarray) -> None:
        self._values.write(numbers.tobytes())
        self.count += len(numbers)

    def extend(self, content: bytes) -> None:
        self._values.write(content)
        self._end += len(content)

    def close_value(self) -> None:
        assert self._ends is not None
        self._ends.write(np.int64(self._end).tobytes())
        self.count += 1

    def close(self) -> list[str]:
        return [file.close() for file in (self._values, self._ends) if file is not None]


class _Hashed:
    """A file and the digest of what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "wb", buffering=2**20)  # noqa: SIM115 - closed by `close`
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)

    def close(self) -> str:
        self._file.close()
        return self._digest.hexdigest()


class Texts(Sequence[str]):
    """A column of texts, memory-mapped: `values` uint8 holds their UTF-8, text i ends at `ends[i]`."""

    def __init__(self, values: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.ends = values, ends

    def __len__(self) -> int:
        return len(self.ends)

    def start(self, number: int) -> int:
        """The byte at which text `number` begins."""
        return int(self.ends[number - 1]) if number else 0

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of all texts, read from the file: a page of a map would stay in memory."""
        if not isinstance(self.values, np.memmap):
            return self.values[start:stop].tobytes()
        with open(str(self.values.filename), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"text {number} of {len(self)}")
        number %= len(self)
        return self.values[self.start(number) : int(self.ends[number])].tobytes().decode()


class Store:
    """A folder that StoreWriter has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = json.loads((folder / ABOUT).read_text())
        self.columns = {name: Kind(dtype, tuple(shape)) for name, (dtype, shape) in found["columns"].items()}
        self.counts: dict[str, int] = found["counts"]
        self.members: dict[str, list[int]] = found["members"]  # split -> where each member of a mixture ends
        self.fingerprint: str = found["fingerprint"]
        self.about: dict[str, Any] = found["about"]

    def records(self, split: str) -> "Stored":
        """The examples of a split."""
        return Stored(self, split)


class Stored:
    """The examples of one split of a store, with random access."""

    def __init__(self, store: Store, split: str) -> None:
        self._count, self._kinds = store.counts[split], store.columns
        self.members = store.members.get(split, [])  # where each member of a mixture ends
        self._values, self._ends = {}, {}
        for name, kind in store.columns.items():
            self._values[name] = mapped(store.folder / f"{split}.{name}.values", np.uint8)
            if kind.varies:
                self._ends[name] = mapped(store.folder / f"{split}.{name}.ends", np.int64)

    def __len__(self) -> int:
        return self._count

    def many(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The examples of these numbers: column -> value."""
        return [{name: self._value(name, number) for name in self._kinds} for number in numbers]

    def texts(self, name: str) -> Texts | None:
        """A column of texts; None where it holds other values."""
        return Texts(self._values[name], self._ends[name]) if self._kinds[name] == TEXT else None

    def numbers(self, name: str) -> np.ndarray | None:
        """A column of numbers [examples], memory-mapped; None where it holds other values, or does not exist."""
        kind = self._kinds.get(name, TEXT)
        return None if kind.varies or kind.shape else self._values[name].view(kind.dtype)

    def _value(self, name: str, number: int) -> Any:
        kind = self._kinds[name]
        if kind.varies:
            start, end = (int(self._ends[name][number - 1]) if number else 0), int(self._ends[name][number])
        else:
            start, end = number * kind.bytes_each, (number + 1) * kind.bytes_each
        return kind.from_bytes(self._values[name][start:end])


def mapped(path: Path, dtype: Any) -> np.ndarray:
    """A file as an array, memory-mapped unless it is empty."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
