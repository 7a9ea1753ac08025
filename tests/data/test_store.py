"""The store: what is written is read, by example and as memory-mapped columns; the fingerprint tells stores apart."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.data.sources.stored import from_store
from transformer.data.store import INTEGER, TEXT, Kind, Store, StoreWriter

COLUMNS = {"text": TEXT, "label": INTEGER, "audio": Kind("int16", (None,)), "image": Kind("uint8", (2, 3, 1))}


def example(number: int, text: str) -> dict[str, Any]:
    audio = np.arange(number, dtype=np.int16) - 3
    return {"text": text, "label": number, "audio": audio, "image": np.full((2, 3, 1), number, np.uint8)}


def written(folder: Path, splits: dict[str, list[dict[str, Any]]], at_once: int = 2, **about: Any) -> Store:
    folder.mkdir()
    writer = StoreWriter(folder, COLUMNS, list(splits))
    for split, rows in splits.items():
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            writer.add(split, {name: [row[name] for row in part] for name in COLUMNS})
    fingerprint = writer.close(**about)
    store = Store(folder)
    assert store.fingerprint == fingerprint
    return store


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        type(one[name]) is type(other[name]) or np.isscalar(one[name]) for name in one
    ) and all(np.array_equal(one[name], other[name]) for name in one)  # fmt: skip


TEXTS = ["", "ü", "two\nlines", "\U0001f600 x", "last"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [example(number, text) for number, text in enumerate(TEXTS)]
    store = written(tmp_path / "s", {"train": rows, "test": rows[3:], "empty": []}, facts={"classes": ["a"]})
    source = from_store("mine", store)
    assert source.splits == ("train", "test")
    assert source.fields == ("text",)
    assert source.arrays == ("audio", "image")
    assert source.classes == ("a",)
    examples = source.split("train")
    assert all(same(found, row) for found, row in zip(examples, rows, strict=True))
    assert same(examples[-2], rows[3])
    assert [found["label"] for found in examples.many([4, 0, 4])] == [4, 0, 4]
    texts = examples.texts("text")
    assert texts is not None
    assert list(texts) == TEXTS
    assert texts[1:3] == TEXTS[1:3]
    assert texts[-1] == "last"
    assert examples.texts("label") is None
    with pytest.raises(IndexError):
        texts[5]


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), max_size=9), st.integers(1, 4))
def test_any_texts(tmp_path_factory: pytest.TempPathFactory, texts: list[str], at_once: int) -> None:
    rows = [example(number, text) for number, text in enumerate(texts)]
    store = written(tmp_path_factory.mktemp("store") / "s", {"train": rows}, at_once)
    assert [row["text"] for row in store.records("train").many(range(len(texts)))] == texts


def test_a_text_in_pieces_is_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    writer = StoreWriter(tmp_path / "a", {"text": TEXT}, ["train", "test"])
    for split, pieces in (("train", ["one ", "two"]), ("train", ["three"]), ("test", ["ü"])):
        for piece in pieces:
            writer.extend(split, "text", piece.encode())
        writer.close_value(split, "text")
    pieces = writer.close()
    (tmp_path / "b").mkdir()
    writer = StoreWriter(tmp_path / "b", {"text": TEXT}, ["train", "test"])
    writer.add("train", {"text": ["one two", "three"]})
    writer.add("test", {"text": ["ü"]})
    assert writer.close() == pieces
    assert Store(tmp_path / "a").counts == {"train": 2, "test": 1}


def test_the_fingerprint_is_of_every_value_and_its_place(tmp_path: Path) -> None:
    rows = [example(number, text) for number, text in enumerate(TEXTS)]
    plain = written(tmp_path / "0", {"train": rows, "test": rows[:2]}, 1)
    assert plain.fingerprint.startswith("3:")
    assert written(tmp_path / "1", {"train": rows, "test": rows[:2]}, 3).fingerprint == plain.fingerprint
    others: list[tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]] = [
        ({"train": [*rows[1:], rows[0]], "test": rows[:2]}, {}),
        ({"train": rows[:4], "test": [*rows[:2]]}, {}),
        ({"train": rows, "validation": rows[:2]}, {}),
        ({"train": [rows[0] | {"label": 1}, *rows[1:]], "test": rows[:2]}, {}),
        ({"train": [rows[0] | {"text": "ü"}, rows[1] | {"text": ""}, *rows[2:]], "test": rows[:2]}, {}),
        ({"train": rows, "test": rows[:2]}, {"names": {"classes": ["a", "b"]}}),
        ({"train": rows, "test": rows[:2]}, {"names": {"classes": ["b", "a"]}}),
    ]
    found = {written(tmp_path / f"x{i}", splits, **about).fingerprint for i, (splits, about) in enumerate(others)}
    assert len({plain.fingerprint, *found}) == 1 + len(others)


def test_the_fingerprint_is_what_runs_have_stored(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    writer = StoreWriter(tmp_path / "s", {"text": TEXT, "label": INTEGER}, ["train", "test"])
    writer.add("train", {"text": ["ü", "b"], "label": [1, 0]})
    names = {"classes": ["a", "b"]}

    def sha256(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    numbers = np.array([2, 3, 1, 0], "<i8").tobytes()
    train = [
        ["train", "text", "text", [], [sha256("üb".encode()), sha256(numbers[:16])]],
        ["train", "label", "int64", [], [sha256(numbers[16:])]],
    ]
    test = [["test", "text", "text", [], [sha256(b"")] * 2], ["test", "label", "int64", [], [sha256(b"")]]]
    text = json.dumps([[*train, *test], {"train": [], "test": []}, names], sort_keys=True)
    assert writer.close(names=names) == f"3:{sha256(text.encode())}"


def test_members_of_a_mixture_are_in_the_fingerprint(tmp_path: Path) -> None:
    found = {}
    for cut in (1, 2):
        (tmp_path / str(cut)).mkdir()
        writer = StoreWriter(tmp_path / str(cut), {"text": TEXT}, ["train"])
        for number, text in enumerate(TEXTS, start=1):
            writer.add("train", {"text": [text]})
            if number in (cut, len(TEXTS)):
                writer.end_member()
        found[cut] = writer.close()
        assert Store(tmp_path / str(cut)).members == {"train": [cut, len(TEXTS)]}
    assert found[1] != found[2]


def test_paths_are_read_as_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    (tmp_path / "s").mkdir()
    writer = StoreWriter(tmp_path / "s", {"image": TEXT, "label": INTEGER}, ["train"])
    writer.add("train", {"image": [str(tmp_path / "x.npy")], "label": [1]})
    writer.close()
    source = from_store("mine", Store(tmp_path / "s"), {"image": np.load})
    assert (source.fields, source.arrays) == ((), ("image",))
    assert source.split("train")[0]["image"].tolist() == [0, 1, 2]
