"""One builder for all data of our own: what it stores, the digests that runs have stored, and the facts of a source."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import Dataset, add_example, array_feature, at_once, of_arrays, of_texts, prepared
from transformer.data.sources import load_source, series
from transformer.data.sources.built import from_builder
from transformer.data.sources.source import Source
from transformer.data.sources.table.splits import Rule
from transformer.errors import UserError

ROWS = {
    "train": [{"text": f"ü {i}", "label": i % 2} for i in range(30)],
    "test": [{"text": "one, more", "label": 1}],
}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def opened(dataset: Dataset, cache: Path) -> Source:
    builder = prepared(dataset, DataConfig(cache=str(cache)))
    return from_builder(dataset.name, builder, builder.info.metadata["fingerprint"], dataset.facts, dataset.aliases)


def config(folder: Path, name: str, **changes: str) -> DataConfig:
    return DataConfig(**{"name": name, "dir": str(folder), "cache": str(folder / "cache")} | changes)


def test_texts_in_their_order(tmp_path: Path) -> None:
    splits = {split: rows.__iter__ for split, rows in ROWS.items()}
    source = opened(of_texts("toy", ("text",), splits, ("no", "yes")), tmp_path)
    assert {split: list(source.split(split)) for split in source.splits} == ROWS
    named = json.dumps([sha256(json.dumps(ROWS, sort_keys=True)), {"classes": {"label": ["no", "yes"]}}])
    assert source.fingerprint == f"2:{sha256(named)}"
    assert source.facts == {"classes": ["no", "yes"]}
    assert source.classes == ("no", "yes")


def test_generated_data_are_made_when_their_code_or_versions_change(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, list[dict]]:
        made.append(1)
        return ROWS

    def dataset(version: str, code: object = make) -> Dataset:
        return of_texts("toy", ("text",), at_once(ROWS, make), "ab", code=(code,), versions={"babel": version})

    first = opened(dataset("1"), tmp_path)
    assert opened(dataset("1"), tmp_path).fingerprint == first.fingerprint
    assert len(made) == 1
    assert opened(dataset("2"), tmp_path).fingerprint == first.fingerprint
    assert len(made) == 2
    opened(dataset("2", test_texts_in_their_order), tmp_path)
    assert len(made) == 3


def test_classes_of_other_names_are_prepared_apart(tmp_path: Path) -> None:
    splits = {split: rows.__iter__ for split, rows in ROWS.items()}
    for names in (("no", "yes"), ("nein", "ja")):
        assert opened(of_texts("toy", ("text",), splits, names), tmp_path).classes == names


def test_an_empty_split_of_arrays(tmp_path: Path) -> None:
    splits = {"train": lambda: iter([{"x": np.ones(3, np.int16)}]), "test": lambda: iter(())}
    with pytest.raises(UserError, match="toy has no example for its split 'test'"):
        opened(of_arrays("toy", {"x": array_feature((None,), np.int16)}, splits), tmp_path)


# --- The digests that runs have stored: a run is resumed only while they stay what they are


def test_the_digest_of_rows(tmp_path: Path) -> None:
    """Of the built-in texts, too, whose figures name it."""
    rows = {split: [{"text": row["text"]} for row in ROWS[split]] for split in ROWS}
    source = opened(of_texts("toy", ("text",), {split: rows[split].__iter__ for split in rows}), tmp_path)
    assert source.fingerprint == sha256(json.dumps(rows, sort_keys=True))


def test_the_digest_of_arrays(tmp_path: Path) -> None:
    arrays = [np.arange(6, dtype=np.int16).reshape(2, 3), np.ones((1, 3), np.int16)]

    def examples() -> Iterator[dict]:
        yield from ({"x": array, "label": number, "who": "é"} for number, array in enumerate(arrays))

    features = {"x": array_feature((None, 3), np.int16), "label": np.int64, "who": tfds.features.Text()}
    expected = hashlib.sha256(b'["toy", ["x", "label", "who"]]')
    for number, array in enumerate(arrays):
        described = json.dumps([{"label": number, "who": "é"}, {"x": ["<i2", array.shape]}])
        expected.update(described.encode() + array.tobytes())
    expected.update(b'["train", 2]')
    source = opened(of_arrays("toy", features, {"train": examples}), tmp_path)
    assert source.fingerprint == f"2:{expected.hexdigest()}"


# --- What a digest tells apart


def added(*examples: dict) -> str:
    digest = hashlib.sha256()
    for example in examples:
        add_example(digest, example)
    return digest.hexdigest()


INTEGERS = np.array([1, 2, 3, 4], np.int16)
ALIKE: dict[str, tuple[list[dict], list[dict]]] = {
    "texts run together": ([{"a": "ab", "b": "c"}], [{"a": "a", "b": "bc"}]),
    "texts of two examples": ([{"a": "x"}, {"a": ""}], [{"a": ""}, {"a": "x"}]),
    "a text that quotes": ([{"a": 'x", "b": "y', "b": ""}], [{"a": "x", "b": 'y", "b": "'}]),
    "nothing and an empty text": ([{"a": None}], [{"a": ""}]),
    "a word for nothing": ([{"a": None}], [{"a": "None"}]),
    "a number and a text": ([{"a": 1}], [{"a": "1"}]),
    "a truth and a number": ([{"a": True}], [{"a": 1}]),
    "numbers of two kinds": ([{"a": 1}], [{"a": 1.0}]),
    "two zeros": ([{"a": np.float32(0)}], [{"a": np.float32(-0.0)}]),
    "scalars of two types": ([{"a": np.int32(1)}], [{"a": np.int64(1)}]),
    "arrays of two types": ([{"a": INTEGERS}], [{"a": INTEGERS.view(np.uint16)}]),
    "arrays of two shapes": ([{"a": INTEGERS}], [{"a": INTEGERS.reshape(2, 2)}]),
    "arrays run together": ([{"a": INTEGERS[:1], "b": INTEGERS[1:]}], [{"a": INTEGERS[:2], "b": INTEGERS[2:]}]),
    "an array transposed": ([{"a": INTEGERS.reshape(2, 2)}], [{"a": INTEGERS.reshape(2, 2).T}]),
    "names of fields": ([{"a": "x", "b": "y"}], [{"a": "y", "b": "x"}]),
    "two accents": ([{"a": "\u00e9"}], [{"a": "e\u0301"}]),
    "order": ([{"a": 1}, {"a": 2}], [{"a": 2}, {"a": 1}]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_examples_that_differ_are_added_differently(name: str) -> None:
    first, second = ALIKE[name]
    assert added(*first) != added(*second)
    assert added(*first) == added(*(dict(reversed(example.items())) for example in first))


def of_kind(kind: str, rows: dict[str, list[int]], names: tuple[str, ...] = ("no", "yes")) -> str:
    """The fingerprint of a dataset of texts or arrays whose examples are these numbers, with the classes 0 and 1."""
    if kind == "texts":
        texts = {s: [{"text": f"t{i // 2}", "label": i % 2} for i in found] for s, found in rows.items()}
        return of_texts("toy", ("text",), {s: texts[s].__iter__ for s in texts}, names).fingerprint
    arrays = {s: [{"x": np.full(2, i // 2, np.int16), "label": i % 2} for i in found] for s, found in rows.items()}
    features = {"x": array_feature((2,), np.int16), "label": tfds.features.ClassLabel(names=list(names))}
    return of_arrays("toy", features, {s: arrays[s].__iter__ for s in arrays}).fingerprint


@pytest.mark.parametrize("kind", ["texts", "arrays"])
def test_order_splits_labels_and_names_of_classes_are_in_the_fingerprint(kind: str) -> None:
    plain = of_kind(kind, {"train": [0, 3, 4], "test": [7]})
    assert of_kind(kind, {"train": [0, 3, 4], "test": [7]}) == plain
    others = {
        "order": of_kind(kind, {"train": [3, 0, 4], "test": [7]}),
        "a label": of_kind(kind, {"train": [0, 3, 5], "test": [7]}),
        "of the other split": of_kind(kind, {"train": [0, 3], "test": [4, 7]}),
        "names of splits": of_kind(kind, {"train": [0, 3, 4], "validation": [7]}),
        "swapped splits": of_kind(kind, {"train": [7], "test": [0, 3, 4]}),
        "twice": of_kind(kind, {"train": [0, 3, 4, 4], "test": [7]}),
        "names of classes": of_kind(kind, {"train": [0, 3, 4], "test": [7]}, ("nein", "ja")),
        "order of classes": of_kind(kind, {"train": [0, 3, 4], "test": [7]}, ("yes", "no")),
    }
    assert len({plain, *others.values()}) == 1 + len(others)


def test_lines_that_look_like_the_name_of_a_split(tmp_path: Path) -> None:
    found = set()
    name, first, second = '"validation"', ("x", "x"), ("z", "z")
    parts = {"a": ([first, (f"{name}y", "y")], [second]), "b": ([first], [("y", "y"), (f"{name}z", "z")])}
    for folder, (train, validation) in parts.items():
        (tmp_path / folder).mkdir()
        for stem, pairs in {"train": train, "validation": validation, "test": [first]}.items():
            for number, language in enumerate(("en", "de")):
                (tmp_path / folder / f"{stem}.{language}").write_text("".join(f"{pair[number]}\n" for pair in pairs))
        found.add(load_source(config(tmp_path / folder, "files")).fingerprint)
    assert len(found) == 2


def test_another_rule_of_splitting_is_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all").write_text("".join(f"line {i}\n" for i in range(300)))
    data = config(tmp_path, "files", dir="", source="", target=str(tmp_path / "all"))
    plain = load_source(data).fingerprint
    rule = Rule.hashed
    monkeypatch.setattr(Rule, "hashed", lambda self, text: rule(self, text + "."))
    assert load_source(dataclasses.replace(data, cache=str(tmp_path / "other"))).fingerprint != plain


def test_renamed_labels_and_columns_are_other_data(tmp_path: Path) -> None:
    def of_series(*columns: str) -> str:
        values = np.arange(20.0)[:, None] ** np.arange(1, 3)
        return series.series_data("s", list(columns), values, {"train": 10, "test": 5}).fingerprint

    assert of_series("a", "b") == of_series("a", "b") != of_series("a", "c")
    found = {}
    for labels in ("01", "ab", "ba"):
        (tmp_path / labels).mkdir()
        for stem in ("train", "dev", "test"):
            (tmp_path / labels / f"{stem}.tsv").write_text(f"x\t{labels[0]}\ny\t{labels[1]}\n")
        found[labels] = load_source(config(tmp_path / labels, "sst2")).fingerprint
    assert len(set(found.values())) == 3


# --- Facts


def test_facts_of_a_series_scale_it_back_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(14_400, 2)) * [1, 300] + [5, -7000]
    hours = np.datetime64("2016-07-01T00") + np.arange(len(values)) * np.timedelta64(1, "h")
    rows = zip(hours, values.tolist(), strict=True)
    text = "date,HUFL,OT\n" + "".join(f"{hour},{first!r},{second!r}\n" for hour, (first, second) in rows)
    (tmp_path / "ETTh1.csv").write_text(text)
    source = load_source(config(tmp_path, "ett"))
    facts = json.loads(json.dumps(source.facts))
    assert facts == source.facts
    assert facts.keys() == {"columns", "mean", "deviation", "time", "frequency", "season"}
    assert facts["columns"] == ["HUFL", "OT"]
    np.testing.assert_allclose(facts["mean"], values[:8640].mean(axis=0), rtol=1e-12)
    scaled = ((values - np.array(facts["mean"])) / np.array(facts["deviation"])).astype(np.float32)
    read = np.concatenate([source.split(split)[0]["values"] for split in source.splits])
    np.testing.assert_array_equal(read, scaled)  # bit for bit


def test_facts_of_labelled_files(tmp_path: Path) -> None:
    for stem in ("train", "dev", "test"):
        (tmp_path / f"{stem}.tsv").write_text("a\t1\nb\t0\n")
    facts = load_source(config(tmp_path, "sst2")).facts
    assert facts == {"classes": ["negative", "positive"], "labels": {"0": 0, "1": 1}}


def test_facts_of_images(tmp_path: Path) -> None:
    source = load_source(config(tmp_path, "digits", dir=""))
    facts = json.loads(json.dumps(source.facts))
    pixels = np.stack([example["image"] for example in source.split("train")]) / 255
    assert facts["classes"] == [str(digit) for digit in range(10)]
    np.testing.assert_allclose(facts["mean"], [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(facts["deviation"], [pixels.std()], rtol=1e-6)
    for name in ("mean", "deviation"):  # float32, as the batches take them
        assert facts[name] == [float(np.float32(number)) for number in facts[name]]


def test_a_text_without_classes_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("A text of more than twenty characters.")
    source = load_source(config(tmp_path, "text"))
    assert source.facts == {}
    assert source.classes == ()
