"""The shards of the tokens of a split, which are read in constant memory. (`corpus` makes them.)"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from transformer.data import store
from transformer.data.batches.encoding import Shard
from transformer.data.batches.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Corpus(Sequence[Mapping[str, Tokens]]):
    """The tokens of a split, shard by shard: field -> tokens of the texts of a shard, memory-mapped.

    `members`: member of a mixture -> its weight and the numbers of its shards; empty where there is none.
    """

    folder: Path
    paths: tuple[Path, ...]
    shards: tuple[Shard, ...]
    fields: tuple[str, ...]
    dtype: np.dtype[Any]
    members: Mapping[str, tuple[float, range]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tokens]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Tokens]]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        path = self.paths[operator.index(index)]
        return {
            name: Tokens(_mapped(path / f"{place}.tokens", self.dtype), _mapped(path / f"{place}.offsets", np.int64))
            for place, name in enumerate(self.fields)
        }

    def sizes(self) -> list[int]:
        """The number of tokens of each shard, from the sizes of its files."""
        files = [[path / f"{place}.tokens" for place in range(len(self.fields))] for path in self.paths]
        return [sum(file.stat().st_size for file in own) // self.dtype.itemsize for own in files]

    def whole(self) -> dict[str, Tokens]:
        """The tokens of all texts, in memory where there are several shards: for splits that are known to be small."""
        if len(self) == 1:
            return self[0]
        parts = list(self)
        return {name: joined([part[name] for part in parts]) for name in self.fields}


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    """A memory-mapped file as a plain array, whose slices cost a tenth of a `np.memmap`'s."""
    return np.asarray(store.mapped(path, dtype))


def joined(parts: Sequence[Tokens]) -> Tokens:
    """The texts of all parts, in order."""
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Tokens(np.concatenate([part.flat for part in parts]), offsets)
