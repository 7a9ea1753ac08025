"""Token ids and classes of the examples of a split, cached."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transformer.config import DataConfig
from transformer.data.caching import Key, cache_root, cached, load_array
from transformer.data.sources.source import Source
from transformer.data.tokenizers import Tokenizer
from transformer.data.tokenizers.training import code
from transformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Concatenated token ids of many texts, without special tokens: text i is flat[offsets[i]:offsets[i + 1]]."""

    flat: np.ndarray  # int32
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


def tokenize(
    source: Source, split: str, fields: Sequence[str], tokenizer: Tokenizer, data: DataConfig
) -> dict[str, Tokens]:
    """Token ids of the fields of a split, in that order, cached."""
    names = [source.field(field) for field in fields]
    examples = source.split(split)  # before the cache is read, since it may raise UserError
    inputs = [source.fingerprint, split, names, tokenizer.fingerprint]
    key = Key(cache_root(data) / "tokens", inputs, (*code(), sys.modules[__name__]), ("tokenizers",))

    def make(folder: Path) -> None:
        parts: dict[str, list[Tokens]] = {name: [] for name in names}
        for start in range(0, len(examples), 4096):
            chunk = examples.many(range(start, min(start + 4096, len(examples))))
            for name in names:
                parts[name].append(Tokens.of(tokenizer.encode_batch([example[name] for example in chunk])))
        for number, name in enumerate(names):
            lengths = np.concatenate([part.lengths for part in parts[name]])
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            np.save(folder / f"{number}.offsets.npy", offsets)
            np.save(folder / f"{number}.flat.npy", np.concatenate([part.flat for part in parts[name]]))

    folder = cached(key, make)
    return {
        name: Tokens(load_array(folder / f"{number}.flat.npy"), np.load(folder / f"{number}.offsets.npy"))
        for number, name in enumerate(names)
    }


def read_labels(source: Source, split: str, data: DataConfig) -> np.ndarray:
    """The class of every example of a split [examples], int32, cached. UserError: the source has no classes, or an
    example has a label that is no class."""
    if not source.classes:
        raise UserError(f"{source.name} has no classes: choose a dataset of labelled texts in data.name.")
    examples = source.split(split)
    key = Key(cache_root(data) / "labels", [source.fingerprint, split], [read_labels])

    def make(folder: Path) -> None:
        np.save(folder / "labels.npy", np.array([example["label"] for example in examples], np.int32))

    labels = np.load(cached(key, make) / "labels.npy")
    without = np.flatnonzero((labels < 0) | (labels >= len(source.classes)))
    if len(without):  # -1 stands for no label, as in the test split of GLUE
        raise UserError(
            f"Example {without[0] + 1} of {split} of {source.name} has the label {labels[without[0]]}, which is no "
            "class: choose another split, or take it out."
        )
    return labels


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
