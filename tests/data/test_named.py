"""Every TFDS dataset that the README and the configs name, on a stand-in: that builder's own features and splits, as
the installed package writes them, with made-up examples. The datasets themselves are not downloaded."""

import dataclasses
import importlib
import inspect
import io
import random
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from transformer.config import Config, DataConfig, load_file, override
from transformer.data.builder import array_feature, of_arrays, of_texts, prepare, prepared, quiet
from transformer.data.sources import SOURCES, load_source, named, survey
from transformer.data.sources.built import from_builder
from transformer.data.sources.source import Source
from transformer.data.sources.survey import surveyed
from transformer.data.tokenizers.training import load_or_train
from transformer.errors import UserError
from transformer.tasks import task_class

ROOT = Path(__file__).parents[2]
LANGUAGE_MODEL = {"task": "language_model", "model.family": "decoder_only", "data.source": "", "data.target": "text"}
CLASSES = {"task": "text_classification", "model.family": "encoder_only", "model.num_classes": 2, "data.source": ""}
IMAGES = {"task": "image_classification", "model.family": "encoder_only", "model.inputs": "image"}
CASES: dict[str, dict[str, Any]] = {
    "lm1b": LANGUAGE_MODEL,
    "wmt17_translate/de-en": {"task": "translation", "data.source": "en", "data.target": "de"},
    "imdb_reviews": CLASSES | {"data.target": "text"},
    "glue": CLASSES | {"data.target": "sentence"},
    "glue/sst2": CLASSES | {"data.target": "sentence"},
    "glue/mnli": CLASSES
    | {"data.target": "premise", "model.num_classes": 3, "data.validation": "validation_mismatched"},
    "opus": {"task": "translation", "data.source": "de", "data.target": "en"},
    "mnist": IMAGES | {"model.num_classes": 10, "model.image_size": [28, 28]},
    "imagenet2012": IMAGES | {"model.num_classes": 1000, "model.image_size": [8, 8], "model.channels": 3},
}
# Splits that the installed package cannot tell without the data or TensorFlow: as its source has them.
SPLITS = {"imagenet2012": ["train", "validation", "test"]}
WITHOUT_LABELS = {"imdb_reviews": "unsupervised", "glue": "test", "glue/sst2": "test", "imagenet2012": "test"}
WITHOUT_VALIDATION = ("lm1b", "imdb_reviews", "opus", "mnist")


def splits_of(name: str, builder: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the splits, from the builder's own code, with a download manager that downloads nothing."""

    def nothing(url: Any) -> Any:
        if isinstance(url, dict):
            return {key: nothing(each) for key, each in url.items()}
        return [nothing(each) for each in url] if isinstance(url, list | tuple) else "none"

    if name in SPLITS:
        return SPLITS[name]
    module = inspect.getmodule(type(builder))
    if hasattr(module, "tf"):
        gfile = SimpleNamespace(glob=lambda pattern: [])
        monkeypatch.setattr(module, "tf", SimpleNamespace(io=SimpleNamespace(gfile=gfile)))
    manager = SimpleNamespace(
        download=nothing, extract=nothing, download_and_extract=nothing, iter_archive=lambda path: iter(())
    )
    made = builder._split_generators(manager)
    return list(made) if isinstance(made, dict) else [str(split.name) for split in made]


def value_of(feature: Any, number: int, labelled: bool) -> Any:
    if isinstance(feature, tfds.features.ClassLabel):
        return number % feature.num_classes if labelled else -1
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: value_of(feature[key], number, labelled) for key in feature}
    if isinstance(feature, tfds.features.Text):
        return f"text number {number % 30}"
    if isinstance(feature, tfds.features.Image):
        pixels = np.full([size or 8 for size in feature.shape], number % 30, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "png")  # whatever the dataset itself has
        file.seek(0)
        return file
    return feature.np_dtype(number)


def stand_in(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 60) -> Config:
    """Prepares a dataset with this name in a folder, and gives the config of a small run on it."""
    for module in named.TEXT_MODULES:
        importlib.import_module(f"tensorflow_datasets.{module}")
    builder = tfds.builder(name, data_dir=folder)
    splits = splits_of(name, builder, monkeypatch)

    def examples(split: str) -> Iterator[tuple[int, Any]]:
        labelled = WITHOUT_LABELS.get(name) != split
        yield from ((i, value_of(builder.info.features, i, labelled)) for i in range(count))

    monkeypatch.setattr(builder, "_split_generators", lambda manager: {split: examples(split) for split in splits})
    with quiet():
        prepare(builder)
    small = {"data.max_len": 16, "data.buckets": [16], "data.batch_tokens": 64, "data.vocab_size": 270}
    small |= {"model.d_model": 8, "model.num_heads": 2, "data.dir": str(folder), "data.cache": str(folder / "cache")}
    return override(Config(), small | {"data.name": name} | CASES[name])


def batch_of(config: Config, source: Source, split: str) -> dict[str, np.ndarray]:
    """A batch of a split, as the task of the config makes it."""
    kind, tokenizer = task_class(config.task), None
    if kind.reads_text:
        tokenizer = load_or_train(source, config.data, kind.fields(config, source), kind.extra_pieces(config))
    task = kind(config, tokenizer)
    task.check(source)
    return next(iter(task.batches(source, split).evaluation()))


@pytest.mark.parametrize("name", CASES)
def test_every_dataset_that_is_named_gives_batches(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = stand_in(name, tmp_path, monkeypatch)
    source = load_source(config.data)
    for split in ("train", "validation"):
        assert batch_of(config, source, split)
    told = [record.getMessage() for record in caplog.records if "no split 'validation'" in record.getMessage()]
    assert len(told) == (name in WITHOUT_VALIDATION)
    if name in WITHOUT_LABELS:
        with pytest.raises(UserError, match=r"label.* -1|without a label \(-1\)") as error:
            batch_of(config, source, WITHOUT_LABELS[name])
        assert "choose another split" in str(error.value)


def test_every_name_is_tried() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    listed = re.search(r"of every TFDS dataset named here \(([^)]*)\)", readme)
    assert listed
    names = set(re.findall(r"`([\w/-]+)`", listed[1])) | set(re.findall(r"data\.name=([\w/-]+)", readme))
    names |= {load_file(path).data.name for path in (ROOT / "configs").glob("*.py")}
    of_tfds = {name for name in names if name not in SOURCES} | {"mnist"}  # which is TFDS's without data.dir
    assert of_tfds <= set(CASES)


# --- The part of train that is kept for validation


def toy(folder: Path, examples: list[dict[str, Any]], **changes: str) -> Source:
    data = DataConfig(cache=str(folder), **{"source": "", "target": "text"} | changes)
    splits = {"train": examples.__iter__, "test": examples[:3].__iter__}
    fields = [field for field in examples[0] if field != "label"]
    builder = prepared(of_texts("toy", fields, splits, "ab"), data)
    return surveyed(from_builder("toy", builder, ""), builder, data)


def texts_of(source: Source, split: str, field: str = "text") -> list[str]:
    return [example[field] for example in source.split(split)]


def test_equal_texts_are_on_one_side_and_stay_there(tmp_path: Path) -> None:
    texts = [f"  caf{'e' + chr(0x301) if i % 2 else chr(0xE9)} {i // 3}" + " " * (i % 2) for i in range(3000)]
    small = toy(tmp_path, [{"text": text, "label": i % 2} for i, text in enumerate(texts)])
    texts = random.Random(0).sample(texts + [f"more {i}" for i in range(900)], 3900)
    large = toy(tmp_path, [{"text": text, "label": i % 2} for i, text in enumerate(texts)])
    sides = []
    for source, count in ((small, 3000), (large, 3900)):
        train, validation = (texts_of(source, split) for split in ("train", "validation"))
        assert len(train) + len(validation) == count
        assert 0.03 < len(validation) / count < 0.07
        sides.append([{unicodedata.normalize("NFC", text).strip() for text in side} for side in (train, validation)])
        assert not sides[-1][0] & sides[-1][1]
        assert source.splits == ("train", "validation", "test")
        assert len(source.split("test")) == 3
    assert sides[0][0] <= sides[1][0]
    assert sides[0][1] <= sides[1][1]


def test_a_large_split_keeps_a_limited_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "VALIDATION_MOST", 50)
    source = toy(tmp_path, [{"text": f"text {i}", "label": 0} for i in range(3000)])
    assert 30 < len(source.split("validation")) < 70
    assert len(source.split("train")) + len(source.split("validation")) == 3000


def test_a_few_examples_and_one_text(tmp_path: Path) -> None:
    source = toy(tmp_path, [{"text": f"text {i % 3}", "label": 0} for i in range(6)])
    assert len(source.split("validation")) == 2
    assert len(source.split("train")) == 4
    with pytest.raises(UserError, match=r"too few examples in train .* data\.validation, of train, test"):
        toy(tmp_path, [{"text": "the same", "label": 0} for _ in range(6)])


def test_a_pair_is_kept_by_its_source(tmp_path: Path) -> None:
    examples = [{"en": f"text {i // 2}", "de": f"Text {i}", "label": 0} for i in range(600)]
    source = toy(tmp_path, examples, source="en", target="de")
    assert not set(texts_of(source, "train", "en")) & set(texts_of(source, "validation", "en"))
    other = toy(tmp_path, examples, source="de", target="en")
    assert other.fingerprint != source.fingerprint, "train holds other examples"


def test_images_are_kept_by_their_pixels_and_normalised_without_them(tmp_path: Path) -> None:
    pixels = [np.full((2, 2, 1), i // 2, np.uint8) for i in range(400)]
    examples = [{"image": image, "label": i % 2, "id": f"{i}"} for i, image in enumerate(pixels)]
    features = {
        "image": array_feature((2, 2, 1), np.uint8),
        "label": tfds.features.ClassLabel(num_classes=2),
        "id": tfds.features.Text(),  # as cifar10 has
    }
    data = DataConfig(cache=str(tmp_path))
    builder = prepared(of_arrays("toy", features, {"train": examples.__iter__}), data)
    source = surveyed(from_builder("toy", builder, ""), builder, data)
    train, validation = ([example["image"] for example in source.split(name)] for name in ("train", "validation"))
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in validation}
    assert 4 < len(validation) < 40
    np.testing.assert_allclose(source.facts["mean"], [np.mean(train) / 255], rtol=1e-6)


def test_another_split_to_validate_on(tmp_path: Path) -> None:
    examples = [{"text": f"text {i}", "label": 0} for i in range(40)]
    cut, named = toy(tmp_path, examples), toy(tmp_path, examples, validation="test").validating("test")
    assert texts_of(named, "validation") == texts_of(named, "test") == ["text 0", "text 1", "text 2"]
    assert len(named.split("train")) == 40
    assert named.fingerprint != cut.fingerprint
    assert cut.validating("") is cut
    with pytest.raises(UserError, match=r"toy has no split data\.validation='tset': did you mean 'test'"):
        cut.validating("tset")


def test_the_key_is_for_every_source(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text(f"{name} a\t0\n{name} b\t1\n")
    data = DataConfig(name="sst2", dir=str(tmp_path), cache=str(tmp_path / "cache"))
    source = load_source(dataclasses.replace(data, validation="test"))
    assert texts_of(source, "validation") == ["test a", "test b"]
    assert source.fingerprint != load_source(data).fingerprint
