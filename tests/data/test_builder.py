"""One builder for all data of our own: what it stores, the digests that runs have stored, and the facts of a source."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import Dataset, array_feature, at_once, of_arrays, of_texts, prepared
from transformer.data.sources import load_source
from transformer.data.sources.source import Source, from_builder
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
    assert source.fingerprint == sha256(json.dumps(ROWS, sort_keys=True))
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
    assert opened(dataset("1"), tmp_path).fingerprint == first.fingerprint == sha256(json.dumps(ROWS, sort_keys=True))
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


def test_the_digest_of_arrays(tmp_path: Path) -> None:
    arrays = [np.arange(6, dtype=np.int16).reshape(2, 3), np.ones((1, 3), np.int16)]

    def examples() -> Iterator[dict]:
        yield from ({"x": array, "label": number, "who": "é"} for number, array in enumerate(arrays))

    features = {"x": array_feature((None, 3), np.int16), "label": np.int64, "who": tfds.features.Text()}
    expected = hashlib.sha256(b'["toy", ["x", "label", "who"]]')
    for number, array in enumerate(arrays):
        expected.update(f"x <i2 {array.shape} ".encode() + array.tobytes() + f"label {number} who 'é' ".encode())
    expected.update(b'["train", 2]')
    source = opened(of_arrays("toy", features, {"train": examples}), tmp_path)
    assert source.fingerprint == expected.hexdigest()


def test_the_digest_of_parallel_text(tmp_path: Path) -> None:
    text = '["files", ["en", "de"], false]'
    for split in ("train", "validation", "test"):
        lines = {language: [f"{split} {language} ü {i}" for i in range(3)] for language in ("en", "de")}
        for language in lines:
            (tmp_path / f"{split}.{language}").write_text("\n".join(lines[language]) + "\n")
        text += json.dumps(split) + "".join(f"{en}\n{de}\n" for en, de in zip(*lines.values(), strict=True))
    assert load_source(config(tmp_path, "files")).fingerprint == sha256(text)


# --- Facts


def test_facts_of_a_series_scale_it_back_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(14_400, 2)) * [1, 300] + [5, -7000]
    hours = np.datetime64("2016-07-01T00") + np.arange(len(values))
    rows = zip(hours, values.tolist(), strict=True)
    text = "date,HUFL,OT\n" + "".join(f"{hour},{first!r},{second!r}\n" for hour, (first, second) in rows)
    (tmp_path / "ETTh1.csv").write_text(text)
    source = load_source(config(tmp_path, "ett"))
    facts = json.loads(json.dumps(source.facts))
    assert facts == source.facts
    assert facts.keys() == {"columns", "mean", "deviation"}
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
