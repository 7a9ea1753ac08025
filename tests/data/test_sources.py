import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import random
import shutil
import subprocess
import sys
import textwrap
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import absl.logging
import numpy as np
import pytest
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import quiet
from transformer.data.sources import load_source, named, parallel
from transformer.data.sources.source import comparable
from transformer.errors import UserError

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "validation", "test")


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def config(folder: Path, name: str = "files", **changes: str) -> DataConfig:
    defaults = {"dir": str(folder), "cache": str(folder / "cache")}
    return DataConfig(name=name, **defaults | changes)


# --- Multi30k


def write_multi30k(folder: Path, ending: str = ".gz", languages: tuple[str, ...] = ("en", "de")) -> None:
    for stem in ("train", "val", "test_2016_flickr"):
        for language in languages:
            write(folder / f"{stem}.{language}{ending}", "".join(f"{stem} {language} {i}\n" for i in range(5)))


def test_multi30k_in_its_own_layout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_multi30k(tmp_path / "data" / "task1" / "raw")
    verbosity = absl.logging.get_verbosity()
    source = load_source(config(tmp_path, "multi30k"))
    assert source.fields == ("en", "de")
    assert source.splits == SPLITS
    assert source.split("test")[1] == {"en": "test_2016_flickr en 1", "de": "test_2016_flickr de 1"}
    assert [example["de"] for example in source.split("train")] == [f"train de {i}" for i in range(5)]
    assert capfd.readouterr() == ("", "")
    assert absl.logging.get_verbosity() == verbosity


def test_plain_files_are_the_same_data(tmp_path: Path) -> None:
    write_multi30k(tmp_path / "a" / "data" / "task1" / "raw")
    write_multi30k(tmp_path / "b", ending="")
    fingerprints = {load_source(config(tmp_path / name, "multi30k")).fingerprint for name in "ab"}
    assert len(fingerprints) == 1
    write(tmp_path / "b" / "val.de", "x\n" * 5)
    assert load_source(config(tmp_path / "b", "multi30k")).fingerprint not in fingerprints


def test_multi30k_wants_only_the_languages_asked_for(tmp_path: Path) -> None:
    write_multi30k(tmp_path, languages=("fr", "en"))
    assert load_source(config(tmp_path, "multi30k", source="fr", target="en")).fields == ("fr", "en")
    assert load_source(config(tmp_path, "multi30k", source="", target="fr")).fields == ("fr",)
    with pytest.raises(UserError, match=r"no file .*train\.de, plain or as \.gz"):
        load_source(config(tmp_path, "multi30k", source="fr", target="de"))
    with pytest.raises(UserError, match="no language 'xx': choose one of en, de, fr, cs"):
        load_source(config(tmp_path, "multi30k", target="xx"))
    with pytest.raises(UserError, match="must name two languages"):
        load_source(config(tmp_path, "multi30k", source="fr", target="fr"))


def test_multi30k_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(gzip.compress(f"{url}\n".encode()))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    data = config(tmp_path, "multi30k", dir="", source="fr", target="cs")
    first = load_source(data)
    assert load_source(data).fingerprint == first.fingerprint
    assert len(asked) == 6
    assert first.split("train")[0]["fr"].endswith("/multi30k/dataset/master/data/task1/raw/train.fr.gz")
    with pytest.raises(UserError, match="is not the file of revision"):
        load_source(config(tmp_path, "multi30k", dir=""))


def test_multi30k_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError, match=r"train\.en\.gz could not be downloaded .*no network.* data\.dir"):
        load_source(config(tmp_path, "multi30k", dir=""))


# --- Files


def test_folder_of_files_by_any_usual_name(tmp_path: Path) -> None:
    for number, validation in enumerate(("validation", "val.gz", "valid", "dev.gz")):
        folder = tmp_path / str(number)
        for language in ("xx", "yy"):
            stem, _, ending = validation.partition(".")
            write(folder / f"train.{language}.gz", f"{language} one\n{language} two\n")
            write(folder / f"{stem}.{language}{'.' if ending else ''}{ending}", f"{language} three\n")
            write(folder / f"test.{language}", f"{language} four\n")
        source = load_source(config(folder, source="xx", target="yy"))
        assert [list(source.split(name)) for name in SPLITS] == [
            [{"xx": "xx one", "yy": "yy one"}, {"xx": "xx two", "yy": "yy two"}],
            [{"xx": "xx three", "yy": "yy three"}],
            [{"xx": "xx four", "yy": "yy four"}],
        ]


def pair(folder: Path, first: str | bytes, second: str | bytes, ending: str = "") -> DataConfig:
    write(folder / f"text.en{ending}", first)
    write(folder / f"text.de{ending}", second)
    return config(folder, dir="", source=str(folder / f"text.en{ending}"), target=str(folder / f"text.de{ending}"))


def test_one_pair_of_files_is_split_by_the_source_line(tmp_path: Path) -> None:
    lines = [f"sentence {i % 1500}" for i in range(3000)]  # each twice, with two translations
    texts = ["\n".join(lines), "\n".join(f"Satz {i}" for i in range(3000))]
    data = pair(tmp_path / "a", *texts, ending=".gz")
    source = load_source(data)
    parts = {name: list(source.split(name)) for name in SPLITS}
    assert sum(map(len, parts.values())) == 3000
    found = {name: {example["source"] for example in examples} for name, examples in parts.items()}
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]
    assert 0.03 < len(parts["validation"]) / 3000 < 0.07
    assert 0.03 < len(parts["test"]) / 3000 < 0.07
    assert source.pair(data) == ("source", "target")

    # The other way round in the file, every sentence is still in the split that it was in.
    order = random.Random(0).sample(range(3000), 3000)
    shuffled = pair(tmp_path / "b", *("\n".join(text.split("\n")[i] for i in order) for text in texts))
    again = load_source(shuffled)
    assert {name: {example["source"] for example in again.split(name)} for name in SPLITS} == found
    assert again.fingerprint != source.fingerprint


def test_one_file_for_a_language_model(tmp_path: Path) -> None:
    write(tmp_path / "text", "\n".join(f"line {i}" for i in range(300)))
    data = config(tmp_path, dir="", source="", target=str(tmp_path / "text"))
    source = load_source(data)
    assert source.fields == source.chosen_fields(data) == ("target",)


MANY = "".join(f"line {i}\n" for i in range(300))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (MANY, MANY + "one more\n", r"text\.en has 300 lines but .*text\.de has 301 lines: "),
        (MANY + "a\nb\n", MANY, r"text\.en has 302 lines but .*text\.de has 300 lines: "),
        ("", MANY, r"text\.en is empty"),
        (MANY, "", r"text\.de is empty"),
        (MANY, MANY.encode() + b"gr\xfc\xdfe\n", r"text\.de is not valid UTF-8 in line 301"),
        (MANY, b"\x1f\x8b broken", r"text\.de is a damaged gzip file"),
        (MANY, gzip.compress(MANY.encode(), mtime=0)[:-20], r"text\.de is a damaged gzip file"),
        (MANY, MANY.encode("utf-16"), r"text\.de is UTF-16, not UTF-8"),
        (MANY, MANY.encode("utf-16-be"), r"text\.de has a NUL character in line 1"),
        (MANY, MANY + "a\0\n", r"text\.de has a NUL character in line 301"),
        (MANY, b"PK\x03\x04" + bytes(99), r"text\.de is a zip archive: unpack it"),
        (MANY, MANY.replace("\n", "\r"), r"text\.de ends its lines with carriage returns alone: convert it"),
        (MANY, MANY.replace("\n", "\r") + "\n", r"text\.de ends its lines with carriage returns alone"),
        ("a\nb\n", "a\nb\n", "give 2 examples in all, too few for train, validation, test"),
        ("\n\n", " \n\n", "and .*text.de has 2 rows, and none with a text: give a file"),
    ],
)
def test_bad_files(tmp_path: Path, first: str | bytes, second: str | bytes, message: str) -> None:
    data = pair(tmp_path, first, second)
    with pytest.raises(UserError, match=message) as caught:
        load_source(data)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    data = pair(tmp_path, MANY, MANY)
    with pytest.raises(UserError, match=r"no file data\.target=.*none\.de"):
        load_source(dataclasses.replace(data, target=str(tmp_path / "none.de")))
    for stem in ("train", "test"):
        for language in ("en", "de"):
            write(tmp_path / f"{stem}.{language}", MANY)
    with pytest.raises(
        UserError, match=r"no file .*validation\.en, plain or as .*zst \(nor as val\.en, valid\.en, dev\.en\)"
    ):
        load_source(config(tmp_path))
    with pytest.raises(UserError, match=r"data\.cache=.*text\.en/cache cannot be made"):
        load_source(dataclasses.replace(data, cache=str(tmp_path / "text.en" / "cache")))


def test_pairs_with_an_empty_side_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    holes = MANY.replace("line 7\n", "\n").replace("line 9\n", " \t\n")
    with caplog.at_level(logging.WARNING):
        source = load_source(pair(tmp_path, MANY, holes))
    assert sum(len(source.split(name)) for name in SPLITS) == 298
    assert "2 examples of" in caplog.text


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    odd = ["\ufefffirst", "a\u2028b", "c\x0bd\x85e", "f\r"]
    for split in SPLITS:
        write(tmp_path / f"{split}.en", "\n".join(odd))
        write(tmp_path / f"{split}.de", "1\n2\n3\n4\n")
    texts = [example["en"] for example in load_source(config(tmp_path)).split("test")]
    assert texts == ["first", "a\u2028b", "c\x0bd\x85e", "f"]


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (MANY.replace("\n", "\r\n").encode(), ""),
        (MANY.encode("utf-8-sig"), ""),
        (bz2.compress(MANY.encode()), ".bz2"),
        (lzma.compress(MANY.encode()), ".xz"),
    ],
    ids=["CRLF", "BOM", "bzip2", "xz"],
)
def test_the_same_lines_in_another_form(tmp_path: Path, content: bytes, ending: str) -> None:
    plain = load_source(pair(tmp_path / "a", MANY, MANY))
    other = load_source(pair(tmp_path / "b", content, content, ending))
    assert [list(other.split(name)) for name in SPLITS] == [list(plain.split(name)) for name in SPLITS]
    for split in SPLITS:  # as a folder has them
        for language in ("en", "de"):
            write(tmp_path / f"{split}.{language}{ending}", content)
    assert len(load_source(config(tmp_path)).split("test")) == 300


def test_a_text_is_in_one_split_however_its_accents_are_written(tmp_path: Path) -> None:
    composed = "".join(f"lin\u00e9 {i}\n" for i in range(300))
    decomposed = unicodedata.normalize("NFD", composed)
    source = load_source(pair(tmp_path / "a", composed + decomposed, composed + decomposed))
    texts = {name: [example["source"] for example in source.split(name)] for name in SPLITS}
    for found in texts.values():  # both of each, as they were written
        forms = [{text for text in found if unicodedata.is_normalized(form, text)} for form in ("NFC", "NFD")]
        assert forms[0] == {unicodedata.normalize("NFC", text) for text in forms[1]}
        assert 2 * len(forms[0]) == len(found) > 0
    # Composed texts are in the splits that they were in when the hash was of the text as it stands.
    for number, text in enumerate((composed, decomposed)):
        alone = load_source(pair(tmp_path / str(number), text, text))
        assert [len(alone.split(split)) for split in SPLITS] == [268, 14, 18]


def test_json_lines_are_not_read_as_they_stand_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects = "".join(f'{{"text": "line {i}"}}\n' for i in range(300))
    write(tmp_path / "a.jsonl", objects)
    with pytest.raises(
        UserError, match=r"a\.jsonl is JSON, which would be read as it stands: read it with data.name=table"
    ):
        load_source(config(tmp_path, dir="", source="", target=str(tmp_path / "a.jsonl")))
    load_source(pair(tmp_path, MANY, objects))  # a target may well be JSON
    assert caplog.text.count("begins with a JSON object, and its lines are read as they stand") == 1


def test_examples_are_a_sequence(tmp_path: Path) -> None:
    write_multi30k(tmp_path)
    train = load_source(config(tmp_path, "multi30k")).split("train")
    everything = list(train)
    assert len(train) == 5
    assert train[-1] == everything[4]
    assert train[1:3] == everything[1:3]
    assert train.many([4, 0]) == [everything[4], everything[0]]
    assert train.many([]) == []
    with pytest.raises(IndexError):
        train[5]


def test_wrong_split_and_field(tmp_path: Path) -> None:
    write_multi30k(tmp_path)
    data = config(tmp_path, "multi30k")
    source = load_source(data)
    with pytest.raises(UserError, match="no split 'valid': did you mean 'validation'"):
        source.split("valid")
    with pytest.raises(UserError, match="no text field 'fr': choose one of en, de"):
        source.pair(dataclasses.replace(data, source="fr"))
    with pytest.raises(UserError, match="both 'de'"):
        source.pair(dataclasses.replace(data, source="de"))


# --- The cache


def test_a_failed_preparation_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_multi30k(tmp_path)
    data = config(tmp_path, "multi30k")

    plain = parallel.lines_of

    def interrupted(path: Path, told: object = None) -> Iterator[str]:
        yield from plain(path, told)
        if path.name.startswith("test"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "lines_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_source(data)
    assert len(load_source(data).split("train")) == 5


COMMAND = """
import os, sys
from transformer.config import DataConfig
from transformer.data.sources import parallel
from transformer.data.batches.corpus import tokenize
from transformer.data.tokenizers.training import load_or_train
from transformer.data import sources

data = DataConfig(name="multi30k", dir=sys.argv[1], cache=sys.argv[2], vocab_size=270)
if sys.argv[3] == "die":
    plain = parallel.lines_of
    def dying(path, told=None):
        for line in plain(path, told):
            yield line
        if path.name.startswith("test"):
            os._exit(9)  # as by kill -9: nothing is cleaned up
    parallel.lines_of = dying
source = sources.load_source(data)
tokens = tokenize(source, "train", source.pair(data), load_or_train(source, data), data)
print(len(source.split("test")), sum(len(t.flat) for t in tokens.values()), "tensorflow" in sys.modules)
"""


def test_two_processes_after_one_was_killed(tmp_path: Path) -> None:
    write_multi30k(tmp_path / "raw")
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "raw"), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    killed = subprocess.run([*command, "die"], env=environment, check=False)
    assert killed.returncode == 9
    assert list((tmp_path / "cache").rglob("*.part"))
    both = [subprocess.Popen([*command, "live"], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("5 ")
    assert outputs[0].endswith(" False\n")  # no TensorFlow
    assert not list((tmp_path / "cache").rglob("*.part"))


# --- TFDS by name

with tfds.core.registered.skip_registration():

    class TinyTranslate(tfds.core.GeneratorBasedBuilder):
        """Nested, as some of TFDS's translation datasets are; known by its files only, as a downloaded one is."""

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="de-en"),)
        code_path = None
        TRAIN = 20
        CORRECTED: tuple[int, ...] = ()

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "translation": tfds.features.Translation(languages=["de", "en"]),
                "id": tfds.features.Scalar(np.int32),
                "about": {"de": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["x", "y"])},
                "extra": tfds.features.Sequence(tfds.features.Text()),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
            return {"test": self._generate_examples(3), "train": self._generate_examples(self.TRAIN)}

        def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
            for i in range(count):
                about = {"de": "über", "label": (i % 2) ^ (i in self.CORRECTED)}
                yield i, {"translation": {"de": f"ß{i}", "en": f"s{i}"}, "id": i, "about": about, "extra": ["a"]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    with quiet():
        TinyTranslate(data_dir=folder, config="de-en", file_format="array_record").download_and_prepare()
    return folder


def test_tfds_by_name(prepared: Path, tmp_path: Path) -> None:
    data = config(tmp_path, "tiny_translate/de-en", dir=str(prepared), source="en", target="translation/de")
    source = load_source(data)
    assert source.splits == ("train", "validation", "test")
    assert set(source.fields) == {"translation/de", "en", "about/de"}
    assert source.pair(data) == ("en", "translation/de")
    examples = sorted([*source.split("train"), *source.split("validation")], key=lambda example: example["id"])
    assert [example["translation/de"] for example in examples] == [f"ß{i}" for i in range(20)]
    assert examples[3] == {"translation/de": "ß3", "en": "s3", "about/de": "über", "label": 1, "id": 3}
    assert load_source(data).fingerprint == source.fingerprint


def test_a_corrected_label_gives_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dataset by name, wherever the example is: 300 are more than any sample of a hundred."""
    monkeypatch.setattr(TinyTranslate, "TRAIN", 300)

    def fingerprint(folder: str, *corrected: int) -> str:
        monkeypatch.setattr(TinyTranslate, "CORRECTED", corrected)
        with quiet():
            TinyTranslate(data_dir=tmp_path / folder, config="de-en", file_format="array_record").download_and_prepare()
        return load_source(config(tmp_path, "tiny_translate/de-en", dir=str(tmp_path / folder))).fingerprint

    plain = fingerprint("plain")
    assert fingerprint("again") == plain
    found = {fingerprint(f"corrected{place}", place) for place in (0, 1, 131, 132, 299)}
    assert len(found | {plain}) == 6


def test_a_dataset_by_name_is_read_for_its_fingerprint_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(tmp_path, "tiny_translate/de-en", dir=str(tmp_path / "copy"))
    shutil.copytree(prepared, tmp_path / "copy")
    first = load_source(data)
    with monkeypatch.context() as patch:
        patch.setattr(type(first), "split", lambda *args: pytest.fail("read again"))
        assert load_source(data).fingerprint == first.fingerprint
        shard = next((tmp_path / "copy").rglob("*train*array_record*"))
        before = shard.stat()
        shard.write_bytes(shard.read_bytes())  # as of a file that was changed in place, with its old time put back
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(pytest.fail.Exception):
            load_source(data)
    assert load_source(data).fingerprint == first.fingerprint


def test_fingerprints_of_an_older_form_are_not_compared(prepared: Path, tmp_path: Path) -> None:
    of_all = load_source(config(tmp_path, "tiny_translate/de-en", dir=str(prepared))).fingerprint
    write(tmp_path / "input.txt", "One text, and no names of classes.")
    of_text = load_source(config(tmp_path, "text")).fingerprint
    stored = hashlib.sha256(b"100 examples").hexdigest()
    assert not comparable(stored, of_all)
    assert not comparable(f"all:{stored}", of_all)
    assert not comparable(stored, of_text)
    assert not comparable(of_all, of_text)
    assert comparable(of_text, of_all)
    assert comparable(of_all, of_all)
    assert comparable(stored, stored)


def test_tfds_names_that_cannot_be_read(prepared: Path, tmp_path: Path) -> None:
    def load(name: str, folder: Path | str = "") -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
            load_source(config(tmp_path, name, dir=str(folder)))

    with pytest.raises(UserError, match="no dataset 'multi3k': did you mean 'multi30k'"):
        load("multi3k")
    with pytest.raises(UserError, match="no dataset 'wmt17_transalte': did you mean 'wmt17_translate'"):
        load("wmt17_transalte/de-en")
    with pytest.raises(UserError, match=r"'lm1b:9\.9\.9' cannot be opened"):
        load("lm1b:9.9.9")
    with pytest.raises(UserError, match=r"lm1b is not prepared in data\.dir="):
        load("lm1b", prepared)
    with pytest.raises(UserError, match="tiny_translate"):
        load("tiny_translate/fr-en", prepared)


def test_tfds_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*args: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(named.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(UserError, match=r"lm1b is not prepared on this machine .* data\.dir"):
        load_source(config(tmp_path, "lm1b", dir=""))


def test_code_that_needs_tensorflow_is_named_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_network(builder: object) -> None:
        raise ConnectionError("none here")

    monkeypatch.setattr(named, "_check_network", no_network)
    for name, told in (("lm1b", True), ("imdb_reviews", False)):
        caplog.clear()
        with pytest.raises(UserError, match=f"{name} is not prepared on this machine"):
            load_source(config(tmp_path, name, dir=""))
        assert ("lm1b's own code uses TensorFlow" in caplog.text) == told


def test_other_file_formats(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy" / "tiny_translate" / "de-en" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (prepared / "tiny_translate" / "de-en" / "1.0.0").iterdir():
        (folder / path.name.replace("array_record", "tfrecord")).write_bytes(path.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split.get("filepathTemplate", "").replace("array_record", "tfrecord")
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="not stored as ArrayRecord: prepare it again"):
        load_source(config(tmp_path, "tiny_translate/de-en", dir=str(tmp_path / "copy")))


def test_a_dataset_without_text(tmp_path: Path) -> None:
    with tfds.core.registered.skip_registration():

        class NoText(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            code_path = None

            def _info(self) -> tfds.core.DatasetInfo:
                features = tfds.features.FeaturesDict({"id": tfds.features.Scalar(np.int32)})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Iterator[tuple[int, dict]]:
                yield 0, {"id": 0}

    with quiet():
        NoText(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="no_text has no text field"):
        load_source(config(tmp_path, "no_text"))


def test_importing_the_data_room_stays_light() -> None:
    code = textwrap.dedent("""
        import sys
        import transformer.data.batches.base, transformer.data.sources, transformer.data.tokenizers
        names = {"tensorflow", "torch", "transformer.model", "transformer.data.builtin.quantities", "babel"}
        print(sorted(names & set(sys.modules)))
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout == "[]\n"


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    write_multi30k(tmp_path)
    fingerprint = load_source(config(tmp_path, "multi30k")).fingerprint
    assert len(fingerprint) == len("2:") + hashlib.sha256().digest_size * 2
    assert fingerprint != load_source(config(tmp_path, "multi30k", source="de", target="en")).fingerprint


def test_two_processes_prepare_the_same_data_at_once(tmp_path: Path) -> None:
    """The second waits for the first and reads what it has written."""
    (tmp_path / "train.en").write_text("".join(f"line {i}\n" for i in range(200)))
    (tmp_path / "train.de").write_text("".join(f"Zeile {i}\n" for i in range(200)))
    data = {"name": "files", "source": str(tmp_path / "train.en"), "target": str(tmp_path / "train.de")}
    code = (
        "from transformer.config import DataConfig; from transformer.data.sources import load_source; "
        f"print(len(load_source(DataConfig(cache={str(tmp_path / 'cache')!r}, **{data})).split('train')))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [process.communicate()[0].strip() for process in started]
    assert all(process.returncode == 0 for process in started)
    assert counts[0] == counts[1] != ""
