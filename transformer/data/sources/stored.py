"""Sources of the user's own files, which are prepared as a store (data/store.py)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transformer.data.sources.source import Source, ordered
from transformer.data.store import TEXT, Store, Texts

Decoders = Mapping[
    str, Callable[[str], np.ndarray]
]  # column that holds paths -> the function that reads one as an array


class StoredRecords:
    """The examples of a split of a store. With `decoders`, the values of some columns are paths of files, which are
    read when an example is."""

    def __init__(self, store: Store, decoders: Decoders, split: str) -> None:
        self._stored, self._decoders = store.records(split), decoders
        self.members, self.mapped = self._stored.members, not decoders

    def __len__(self) -> int:
        return len(self._stored)

    def many(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The examples of these numbers."""
        read = self._stored.many(numbers)
        for name, decode in self._decoders.items():
            for example in read:
                example[name] = decode(example[name])
        return read

    def texts(self, name: str) -> Texts | None:
        """The memory-mapped column of a text field, or of paths that decoders read; None where there is none."""
        return self._stored.texts(name)

    def numbers(self, name: str) -> np.ndarray | None:
        """The memory-mapped column of a field of numbers; None where there is none."""
        return self._stored.numbers(name)


def from_store(name: str, store: Store, decoders: Decoders | None = None, **options: Any) -> Source:
    """The source of a store; `options`: `aliases` and `parts` of Source. Its facts are the store's own. Splits without
    an example are left out."""
    decoders = decoders or {}
    parts = options.get("parts", {})
    texts = [column for column, kind in store.columns.items() if kind == TEXT and column not in decoders]
    arrays = [column for column, kind in store.columns.items() if kind.shape or column in decoders]
    return Source(
        name,
        functools.partial(StoredRecords, store, decoders),
        tuple(texts),
        ordered([*(split for split, count in store.counts.items() if count), *parts]),
        store.fingerprint,
        arrays=tuple(arrays),
        facts=store.about.get("facts", {}),
        **options,
    )
