"""Token ids and classes of the examples of a split, cached: in shards, each of which is read in constant memory."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data import store
from transformer.data.batches import encoding
from transformer.data.batches.encoding import Column, EncodeColumns, EncodeExamples, Shard
from transformer.data.batches.shards import Corpus
from transformer.data.batches.tokens import Tokens
from transformer.data.caching import Key, cache_root, cached
from transformer.data.preparing import prepare
from transformer.data.sources.source import Examples, Source
from transformer.data.tokenizers import Tokenizer
from transformer.data.tokenizers.training import code
from transformer.errors import UserError


def tokenize(
    source: Source, split: str, fields: Sequence[str], tokenizer: Tokenizer, data: DataConfig
) -> dict[str, Tokens]:
    """Token ids of the fields of a split, in that order, cached; all at once."""
    return token_shards(source, split, fields, tokenizer, data).whole()


def token_shards(source: Source, split: str, fields: Sequence[str], tokenizer: Tokenizer, data: DataConfig) -> Corpus:
    """Token ids of the fields of a split, cached in shards (`encoding`). What is missing is encoded by as many
    processes as there are cores, where it is much, with a progress bar on a terminal. UserError: a member of a mixture
    has no example, or the disk is full."""
    names = tuple(source.field(field) for field in fields)
    examples = source.split(split)  # before the cache is read, since it may raise UserError
    mixed = source.mix if split == "train" else {}
    ends = _member_ends(source, examples, mixed)
    texts = [examples.texts(name) for name in names]
    columns = [Column.of(own) for own in texts]
    stored = [own for own in texts if own is not None]
    one = stored[0] if source.contiguous and len(names) == 1 and stored else None
    shards: list[Shard]
    if one is not None and tokenizer.cut is not None:
        shards = encoding.cut_shards(one, tokenizer.cut, ends) or [Shard(0, len(examples))]
        bytes_of = [(shard.end or 0) - (shard.begin or 0) for shard in shards]
    else:
        shards = encoding.shards_of([own.ends for own in stored], ends) or [Shard(0, 0)]
        bytes_of = [sum(own.start(shard.stop) - own.start(shard.first) for own in stored) for shard in shards]
    limits = [encoding.MOST_TEXTS, encoding.MOST_BYTES, encoding.NARROW, list(ends), source.contiguous]
    inputs = [source.fingerprint, split, names, tokenizer.fingerprint, limits]
    key = Key(cache_root(data) / "tokens", inputs, (*code(), encoding, store.Texts), ("tokenizers",))

    make: Any
    known = [column for column in columns if column is not None]
    if len(known) == len(columns):
        make, unit = EncodeColumns(tuple(known), tuple(shards), tokenizer), "B"
    else:
        make, unit = EncodeExamples(examples, names, tuple(shards), tokenizer), " examples"
        bytes_of = [shard.stop - shard.first for shard in shards]
    said = f"tokens of {split} ({', '.join(names)})"
    paths = prepare(key.path, make, bytes_of, said, unit, spread=len(known) == len(columns))
    members = _members(mixed, shards, ends)
    dtype = encoding.dtype_of(tokenizer.vocab_size)
    return Corpus(key.path, tuple(paths), tuple(shards), names, dtype, members)


def _member_ends(source: Source, examples: Examples, mixed: Mapping[str, float]) -> Sequence[int]:
    """The numbers of examples at which members of a mixture end; without one, where all end. UserError: a member has
    no example."""
    if not mixed:
        return [len(examples)]
    ends = list(examples.members)
    if len(ends) != len(mixed):
        raise ValueError(f"{source.name} has {len(ends)} members and {len(mixed)} weights")
    for name, start, end in zip(mixed, [0, *ends], ends, strict=False):
        if start == end:
            raise UserError(f"{name!r} in data.mix has no example to train on: give it some, or leave it out.")
    return ends


def _members(
    mixed: Mapping[str, float], shards: Sequence[Shard], ends: Sequence[int]
) -> dict[str, tuple[float, range]]:
    stops = [sum(shard.stop <= end for shard in shards) for end in ends]
    ranges = (range(start, stop) for start, stop in zip([0, *stops], stops, strict=False))
    return {name: (weight, own) for (name, weight), own in zip(mixed.items(), ranges, strict=False)}


def read_labels(source: Source, split: str, data: DataConfig) -> np.ndarray:
    """The class of every example of a split [examples], integers, cached or memory-mapped. UserError: the source has no
    classes, or an example has a label that is no class."""
    if not source.classes:
        raise UserError(f"{source.name} has no classes: choose a dataset of labelled texts in data.name.")
    examples = source.split(split)
    column = examples.numbers("label")
    key = Key(cache_root(data) / "labels", [source.fingerprint, split], [read_labels, _first_of_each])

    def make(folder: Path) -> None:
        labels = column
        if labels is None:
            labels = np.fromiter((example["label"] for example in examples), np.int32, len(examples))
            np.save(folder / "labels.npy", labels)
        (folder / "first.json").write_text(json.dumps(_first_of_each(labels)))

    folder = cached(key, make)
    first = json.loads((folder / "first.json").read_text())
    without = [(number, label) for label, number in first if not 0 <= label < len(source.classes)]
    if without:  # -1 stands for no label, as in the test split of GLUE
        number, label = min(without)
        raise UserError(
            f"Example {number + 1} of {split} of {source.name} has the label {label}, which is no class: choose "
            "another split, or take it out."
        )
    return np.load(folder / "labels.npy", mmap_mode="r") if column is None else column


def _first_of_each(labels: np.ndarray) -> list[tuple[int, int]]:
    """Each label, and the number of the first example that has it."""
    first: dict[int, int] = {}
    for start in range(0, len(labels), 2**20):
        found, places = np.unique(labels[start : start + 2**20], return_index=True)
        for label, place in zip(found.tolist(), places.tolist(), strict=True):
            first.setdefault(label, start + place)
    return list(first.items())
