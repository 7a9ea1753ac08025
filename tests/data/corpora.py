"""Small stores of texts for tests, and limits that cut them into many shards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformer.data.batches import encoding
from transformer.data.sources.source import Source
from transformer.data.sources.stored import from_store
from transformer.data.store import INTEGER, TEXT, Store, StoreWriter

WORDS = "one two drei vier fünf seis sept 八 девять ten".split()


def sentences(count: int, longest: int = 12, seed: int = 0) -> list[str]:
    """Texts of 0 to `longest` words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(0, longest + 1))) for _ in range(count)]


def stored(
    folder: Path,
    splits: Mapping[str, Mapping[str, Sequence[Any]]],
    members: Sequence[int] = (),
    **options: Any,
) -> Source:
    """The source of a store of these columns; `members`: where members of a mixture end in `train`."""
    folder.mkdir(parents=True)
    first = next(iter(splits.values()))
    kinds = {name: INTEGER if name == "label" else TEXT for name in first}
    writer = StoreWriter(folder, kinds, list(splits))
    for split, columns in splits.items():
        count = len(next(iter(columns.values())))
        ends = [*members, count] if split == "train" else [count]
        for start, end in zip([0, *ends], ends, strict=False):
            writer.add(split, {name: values[start:end] for name, values in columns.items()})
            if split == "train" and members:
                writer.end_member()
    labels = sorted({label for columns in splits.values() for label in columns.get("label", ())})
    facts = {"classes": [str(label) for label in labels]} if labels else {}
    writer.close(facts=facts)
    return from_store("mine", Store(folder), **options)


def small_shards(monkeypatch: pytest.MonkeyPatch, texts: int = 7, size: int = 300) -> None:
    """Shards of few texts and bytes, and pieces of few bytes."""
    monkeypatch.setattr(encoding, "MOST_TEXTS", texts)
    monkeypatch.setattr(encoding, "MOST_BYTES", size)
