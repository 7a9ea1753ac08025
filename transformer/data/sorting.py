"""The order of the examples of a TFDS dataset while it is written, in bounded memory and without TensorFlow."""

import contextlib
import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tensorflow_datasets.core import hashing, shuffle

Record = tuple[int, bytes]  # the key that an example is sorted by, and the serialised example

RUN_BYTES = 2**27  # of the records that are sorted in memory, with the objects that hold them
RECORD_BYTES = 200  # of those objects: a tuple, an integer of 128 bits, the header of bytes
MOST_RUNS = 250  # files that are open at once; many systems allow a process 1,024
HEADER = struct.Struct("<16sQ")  # of a record in a file: its key and its length


class Shuffler:
    """Takes the place of `tfds.core.shuffle.Shuffler`, and gives the same records in the same order.

    Above 1 GB, that class writes buckets by TensorFlow's file system, and it sorts examples that are not shuffled in
    memory, all of them. This one is an external merge sort: sorted runs of RUN_BYTES are written to a temporary folder
    and merged.
    """

    def __init__(
        self, dirpath: Path, hash_salt: str | bytes, disable_shuffling: bool = False, ignore_duplicates: bool = False
    ) -> None:
        self._folder = dirpath
        self._hasher = None if disable_shuffling else hashing.Hasher(hash_salt)
        self._seen: set[int] | None = set() if ignore_duplicates else None
        self._runs: list[BinaryIO] = []
        self._held: list[Record] = []
        self._held_bytes = 0
        self.size = 0  # bytes of all records, without keys
        self.num_examples = 0

    @property
    def bucket_lengths(self) -> Sequence[int]:
        return [self.num_examples]

    def add(self, key: int | str | bytes, data: bytes) -> None:
        """Adds a serialised example. Without shuffling, the key is an integer of at most 128 bits."""
        number = self._hasher.hash_key(key) if self._hasher else int(key)
        if self._seen is not None:
            if number in self._seen:
                return
            self._seen.add(number)
        self._held.append((number, data))
        self._held_bytes += len(data) + RECORD_BYTES
        self.size += len(data)
        self.num_examples += 1
        if self._held_bytes >= RUN_BYTES:
            self._write_run()

    def __iter__(self) -> Iterator[Record]:
        """The records by their keys. DuplicatedKeysError: two have the same."""
        self._held.sort()
        before: Record | None = None
        for record in heapq.merge(*map(_read, self._runs), self._held):
            if before and record[0] == before[0]:
                raise shuffle.DuplicatedKeysError(record[1], before[1])
            yield record
            before = record
        self._close()

    def _write_run(self) -> None:
        self._held.sort()
        if len(self._runs) == MOST_RUNS:
            merged = self._written(heapq.merge(*map(_read, self._runs)))
            self._close()
            self._runs = [merged]
        self._runs.append(self._written(self._held))
        self._held, self._held_bytes = [], 0

    def _written(self, records: Iterable[Record]) -> BinaryIO:
        """A file of records, which is deleted with its last handle."""
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it is read again
        for key, data in records:
            file.write(HEADER.pack(key.to_bytes(16, "little"), len(data)))
            file.write(data)
        file.flush()
        return file

    def _close(self) -> None:
        for file in self._runs:
            file.close()
        self._runs = []


def _read(file: BinaryIO) -> Iterator[Record]:
    file.seek(0)
    while header := file.read(HEADER.size):
        key, length = HEADER.unpack(header)
        yield int.from_bytes(key, "little"), file.read(length)


@contextlib.contextmanager
def in_bounded_memory() -> Iterator[None]:
    """Within, TFDS prepares splits of any size in memory of about twice RUN_BYTES."""
    theirs = shuffle.Shuffler
    shuffle.Shuffler = Shuffler
    try:
        yield
    finally:
        shuffle.Shuffler = theirs
