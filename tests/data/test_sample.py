"""The sample of a corpus that a tokenizer learns from: all of a small one, evenly spaced parts of a large one."""

import itertools
from pathlib import Path

import pytest

from transformer.data.sources.source import Source
from transformer.data.sources.stored import from_store
from transformer.data.store import TEXT, Store, StoreWriter
from transformer.data.tokenizers import sample


def stored(folder: Path, **columns: list[str]) -> Source:
    folder.mkdir()
    writer = StoreWriter(folder, dict.fromkeys(columns, TEXT), ["train"])
    writer.add("train", columns)
    writer.close()
    return from_store("mine", Store(folder))


LINES = [f"line {i:04d} \u00fc\U0001f600" for i in range(1000)]


def test_all_of_a_small_corpus(tmp_path: Path) -> None:
    source = stored(tmp_path / "s", a=LINES, b=[line.upper() for line in LINES])
    assert list(sample.texts_of(source, ["b"])) == [line.upper() for line in LINES]
    assert list(sample.texts_of(source, ["a", "b"]))[:3] == [LINES[0], LINES[0].upper(), LINES[1]]


def test_many_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MOST_EXAMPLES", 300)
    assert list(sample.texts_of(stored(tmp_path / "s", a=LINES), ["a"])) == LINES[::4]


def test_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MOST_BYTES", 2000)
    monkeypatch.setattr(sample, "WINDOW", 100)
    found = list(sample.texts_of(stored(tmp_path / "s", a=LINES), ["a"]))
    assert sum(len(text.encode()) for text in found) <= 2000
    whole = [text for text in found if text in LINES]
    assert len(whole) >= len(found) - 20
    numbers = [LINES.index(text) for text in whole]
    assert numbers == sorted(set(numbers))
    steps = [later - before for before, later in itertools.pairwise(numbers) if later - before > 1]
    assert len(steps) == 19
    assert max(steps) - min(steps) <= 2
    # Two columns share the room by their sizes.
    both = list(sample.texts_of(stored(tmp_path / "t", a=LINES, b=["x" * 3 for _ in LINES]), ["a", "b"]))
    assert 0.05 < sum("x" in text for text in both) / len(both) < 0.9


def test_a_long_text_of_a_small_corpus_is_given_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(LINES)
    monkeypatch.setattr(sample, "WINDOW", 100)
    whole = stored(tmp_path / "s", a=[text])
    assert list(sample.texts_of(whole, ["a"])) == [text]
    monkeypatch.setattr(sample, "LONG", 5000)
    parts = list(sample.texts_of(whole, ["a"]))
    assert all(len(part.encode()) <= 100 and part in text for part in parts)
    assert sum(map(len, parts)) > 0.95 * len(text)


def test_one_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MOST_BYTES", 2000)
    monkeypatch.setattr(sample, "WINDOW", 100)
    text = "\n".join(LINES)
    parts = list(sample.texts_of(stored(tmp_path / "s", a=[text]), ["a"]))
    assert len(parts) == 20
    assert all(part in text for part in parts), "characters that are cut are left out"
    places = [text.index(part) for part in parts]
    assert places == sorted(set(places))
    assert places[-1] > 0.9 * len(text)
