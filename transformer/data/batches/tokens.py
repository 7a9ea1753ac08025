"""Token ids of many texts."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from transformer.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Concatenated token ids of many texts, without special tokens: text i is flat[offsets[i]:offsets[i + 1]]."""

    flat: np.ndarray  # uint16 or int32; batches hold int32
    offsets: np.ndarray  # int64 [texts + 1]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Tokens":
        lengths = [len(sequence) for sequence in sequences]
        flat = np.fromiter((i for sequence in sequences for i in sequence), np.int32, count=sum(lengths))
        return cls(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def gather(
    tokens: Tokens, rows: np.ndarray, width: int, most: int | None = None, pad: int = Tokenizer.pad_id
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, width] of the texts `rows`, padded with `pad`, of each the first `most`, and their lengths [B]; a
    row of -1 is empty."""
    starts = tokens.offsets[np.maximum(rows, 0)]
    lengths = np.where(rows >= 0, tokens.lengths[np.maximum(rows, 0)], 0)
    lengths = lengths if most is None else np.minimum(lengths, most)
    column = np.arange(width)
    inside = column < lengths[:, None]
    matrix = np.full((len(rows), width), pad, np.int32)
    matrix[inside] = tokens.flat[(starts[:, None] + column)[inside]]
    return matrix, lengths
