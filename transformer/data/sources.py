"""Where examples come from: TFDS builders prepared as ArrayRecord files, read at random without TensorFlow.

`load_source` turns the `data` part of a config into a `Source`: its splits are sequences of dicts of strings. SOURCES
holds the names of our own; any other name is looked up among the TFDS datasets. Preparing happens once, under a lock
and into a temporary folder, so that neither a second process nor a kill half-way leaves a broken cache.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import http.client
import importlib
import io
import json
import logging
import operator
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds

from transformer.config import DataConfig, UserError
from transformer.data import text_files
from transformer.data.caching import cache_root, locked, remove, writing
from transformer.data.parallel import ParallelText, TextFiles
from transformer.data.records import RecordDataset, Records

logger = logging.getLogger(__name__)

SPLIT_ORDER = ("train", "validation", "test")


# --- A source


class Examples(Sequence[dict[str, Any]]):
    """The examples of one split, at random access: text fields as str, other scalars as NumPy scalars."""

    def __init__(
        self, records: Any, texts: Mapping[str, tuple[str, ...]], others: Mapping[str, tuple[str, ...]]
    ) -> None:
        self._records = records
        self._texts = texts
        self._others = others

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.many(range(*index.indices(len(self))))
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"example {position} of {len(self)}")
        return self._example(self._records[position % len(self)])

    def many(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`, read in one go: about three times as fast as one by one."""
        return [self._example(record) for record in self._records.__getitems__(list(indices))] if len(indices) else []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), 1000):
            yield from self.many(range(start, min(start + 1000, len(self))))

    def _example(self, record: Any) -> dict[str, Any]:
        example = {name: _as_text(_leaf(record, path)) for name, path in self._texts.items()}
        example.update({name: _leaf(record, path) for name, path in self._others.items()})
        return example


def _leaf(record: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, path, record)


def _as_text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray) else value
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared dataset. `fingerprint` is a hex digest of what it holds: equal digests, equal data."""

    name: str
    builder: tfds.core.DatasetBuilder
    fields: tuple[str, ...]
    splits: tuple[str, ...]
    fingerprint: str
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # another name of a field -> the field
    classes: tuple[str, ...] = ()  # names of the classes of the field `label`
    contiguous: bool = False  # one long text, of which a language model reads rows of consecutive tokens

    def split(self, name: str) -> Examples:
        """The examples of a split. UserError: it does not exist, or its files cannot be read without TensorFlow."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {name!r}: {_choose(name, self.splits)}.")
        texts, others = _features(self.builder)
        try:
            with _quiet():
                records = self.builder.as_data_source(split=name)
        except NotImplementedError as error:
            raise UserError(
                f"{self.name} in {self.builder.data_dir} is not stored as ArrayRecord: prepare it again with "
                'download_and_prepare(file_format="array_record").'
            ) from error
        return Examples(records, texts, others)

    def field(self, name: str) -> str:
        """The text field that `name` means. UserError: there is none."""
        name = self.aliases.get(name, name)
        if name not in self.fields:
            raise UserError(f"{self.name} has no text field {name!r}: {_choose(name, self.fields)}.")
        return name

    def pair(self, data: DataConfig) -> tuple[str, str]:
        """The fields to translate from and into. UserError: one does not exist, or both are the same."""
        source, target = self.field(data.source), self.field(data.target)
        if source == target:
            raise UserError(f"data.source and data.target are both {data.source!r}: name two fields.")
        return source, target

    def chosen_fields(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that the config names: source and target, or the target alone where the source is no field."""
        target = self.field(data.target)
        source = self.aliases.get(data.source, data.source)
        return (source, target) if source in self.fields and source != target else (target,)


def load_source(data: DataConfig) -> Source:
    """The dataset that `data.name` and `data.dir` mean, prepared if it was not. UserError: there is none."""
    factory = SOURCES.get(data.name)
    return factory(data) if factory else _by_name(data)


def _choose(wrong: str, names: Iterable[str]) -> str:
    """The way out of a wrong name: the nearest of `names`, and all of them."""
    names = list(names)
    near = difflib.get_close_matches(wrong, names, n=1)
    listed = ", ".join(names)
    return f"did you mean {near[0]!r} (of {listed})" if near else f"choose one of {listed}"


# --- TFDS


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS without progress bars, log lines and prints; everything is as before afterwards."""
    verbosity = absl.logging.get_verbosity()
    progress = tfds.core.utils.tqdm_utils._active
    absl.logging.set_verbosity(absl.logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        tfds.display_progress_bar(progress)


def _prepared(make: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """The builder that `make` makes, prepared once in the cache folder; other processes wait meanwhile."""
    with _quiet():
        path = Path(make().data_path)
    with locked(path), _quiet():
        builder = make()  # reads what another process has prepared while this one waited
        if (path / "dataset_info.json").exists():
            return builder
        for stale in path.parent.glob(f"incomplete.*_{path.name}"):  # TFDS's own temporary folders, of killed processes
            remove(stale)
        builder.download_and_prepare(file_format="array_record")
    return builder


def _features(builder: tfds.core.DatasetBuilder) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Paths of the text fields and of the other scalars, by the shortest name that is unique."""
    texts: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []

    def walk(feature: Any, path: tuple[str, ...]) -> None:
        if isinstance(feature, tfds.features.FeaturesDict):  # Translation is one
            for name in feature:
                walk(feature[name], (*path, name))
        elif path and isinstance(feature, tfds.features.Tensor) and feature.shape == ():
            is_text = isinstance(feature, tfds.features.Text) or tfds.core.utils.dtype_utils.is_string(feature.np_dtype)
            (texts if is_text else others).append(path)

    walk(builder.info.features, ())
    leaves = [path[-1] for path in texts + others]
    named = {path: path[-1] if leaves.count(path[-1]) == 1 else "/".join(path) for path in texts + others}
    return {named[path]: path for path in texts}, {named[path]: path for path in others}


def _from_builder(name: str, builder: tfds.core.DatasetBuilder, fingerprint: str = "", **aliases: str) -> Source:
    texts, _ = _features(builder)
    if not texts:
        raise UserError(f"{name} has no text field: choose a dataset of texts.")
    present = [split for split, info in builder.info.splits.items() if info.num_examples]
    splits = [s for s in SPLIT_ORDER if s in present] + [s for s in present if s not in SPLIT_ORDER]
    classes = tuple(getattr(dict(builder.info.features).get("label"), "names", None) or ())
    source = Source(name, builder, tuple(texts), tuple(splits), fingerprint, aliases, classes)
    return source if fingerprint else dataclasses.replace(source, fingerprint=_content_fingerprint(source))


def _content_fingerprint(source: Source) -> str:
    """Digest of name, configuration, version, sizes, and 100 examples of each split spread evenly over it."""
    builder = source.builder
    own = (builder.info.metadata or {}).get("fingerprint")  # some builders say themselves what they hold
    digest = hashlib.sha256(json.dumps([builder.info.full_name, own, source.fields, source.splits]).encode())
    for name in source.splits:
        split = builder.info.splits[name]
        digest.update(json.dumps([name, split.shard_lengths, split.num_bytes]).encode())
        examples = source.split(name)
        indices = sorted(set(np.linspace(0, len(examples) - 1, 100).astype(int).tolist()))
        for example in examples.many(indices):
            digest.update(json.dumps([example[field] for field in source.fields]).encode())
    return digest.hexdigest()


# TFDS registers its older datasets only as far as the first folder that wants TensorFlow; those of text come after it.
TFDS_TEXT_MODULES = ("text", "translate", "summarization", "question_answering", "text_simplification")


def _by_name(data: DataConfig) -> Source:
    """Any TFDS dataset: of data.dir, of TFDS's own folder, or downloaded and prepared in the cache folder."""
    with _quiet():
        for module in TFDS_TEXT_MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{module}")
        try:
            builder = tfds.builder(data.name, data_dir=data.dir or None)
            if not data.dir and not builder.is_prepared():
                builder = tfds.builder(data.name, data_dir=cache_root(data) / "tfds")
            prepared = builder.is_prepared()
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(_no_such_dataset(data)) from error
        except Exception as error:  # no such configuration or version, or whatever else a dataset's code raises
            raise UserError(f"data.name={data.name!r} cannot be opened ({_brief(error)}): check the name.") from error
    if not prepared and data.dir:
        raise UserError(
            f"{data.name} is not prepared in data.dir={data.dir}: prepare it there with TFDS, or leave data.dir empty "
            "to download it."
        )
    if not prepared:
        try:
            _check_network(builder)
            logger.warning("downloading and preparing %s in %s, once", data.name, builder.data_dir)
            builder = _prepared(lambda: tfds.builder(data.name, data_dir=cache_root(data) / "tfds"))
        except Exception as error:  # whatever a dataset's own code and the network raise
            raise UserError(
                f"{data.name} is not prepared on this machine and could not be downloaded ({_brief(error)}): prepare "
                'it where that works, with file_format="array_record", and name its folder in data.dir.'
            ) from error
    return _from_builder(data.name, builder)


def _check_network(builder: tfds.core.DatasetBuilder) -> None:
    """Raises at once where none of a dataset's hosts has an address; TFDS itself would try for minutes."""
    hosts = {host for url in builder.url_infos or {} if (host := urllib.parse.urlsplit(url).hostname)}
    failure = None
    for host in [] if urllib.request.getproxies() else sorted(hosts):
        try:
            socket.getaddrinfo(host, 443)
            return
        except OSError as error:
            failure = ConnectionError(f"{host}: {error.strerror}")
    if failure:
        raise failure


def _no_such_dataset(data: DataConfig) -> str:
    name = re.split("[/:]", data.name)[0]
    names = [*SOURCES, *tfds.list_builders(with_community_datasets=False)]
    if name in names:  # the code is there, and the folder of prepared data is not
        return f"{data.name} is not prepared in data.dir={data.dir}: prepare it there with TFDS."
    near = difflib.get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}" if near else f"choose one of {', '.join(SOURCES)}"
    return f"There is no dataset {name!r}: {hint}, or name any dataset of TFDS."


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# --- Our own


def _embedded(builder: str, data: DataConfig) -> Source:
    from transformer.data import embedded  # only here: what it generates from is slow to import

    made = _prepared(lambda: getattr(embedded, builder)(data_dir=cache_root(data) / "tfds"))
    return _from_builder(data.name, made, made.info.metadata["fingerprint"])  # of every example


def _parallel(data: DataConfig, files: TextFiles, **aliases: str) -> Source:
    """Prepares text files; the folder is named after what they hold, so that changed files are prepared anew."""
    fingerprint = files.fingerprint(data.name)
    folder = cache_root(data) / "tfds"
    builder = _prepared(lambda: ParallelText(files, name=data.name, fingerprint=fingerprint, data_dir=folder))
    return _from_builder(data.name, builder, fingerprint, **aliases)


def _records(data: DataConfig, records: Records, **aliases: str) -> Source:
    """Prepares what was read from files; the folder is named after what they hold."""
    folder = cache_root(data) / "tfds"
    builder = _prepared(lambda: RecordDataset(records, data_dir=folder))
    return _from_builder(data.name, builder, records.identity, **aliases)


def _text_file(data: DataConfig) -> Source:
    source = _records(data, text_files.text(data), **{data.target: "text"})
    return dataclasses.replace(source, contiguous=True)


MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
MULTI30K_LANGUAGES = ("en", "de", "fr", "cs")
MULTI30K_STEMS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
# Of the files as of revision a3d2e0d, which our figures are of; files that are not listed are taken as they come.
MULTI30K_SHA256 = {
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
}


def _multi30k(data: DataConfig) -> Source:
    """Captions of Flickr30k images (Elliott et al., 2016): 29,000, 1,014 and 1,000 (test_2016_flickr) sentences.

    Read from `data.dir` in the layout of the dataset's repository, or with its files directly in the folder, plain or
    gzipped; else downloaded from that repository. Only the languages asked for need be there.
    """
    languages = _languages(data)
    for language in languages:
        if language not in MULTI30K_LANGUAGES:
            raise UserError(f"multi30k has no language {language!r}: {_choose(language, MULTI30K_LANGUAGES)}.")
    if data.dir:
        folder = Path(data.dir).expanduser()
        folders = [folder / "data" / "task1" / "raw", folder]
        splits = {
            split: {language: _existing(folders, [f"{stem}.{language}"]) for language in languages}
            for split, stem in MULTI30K_STEMS.items()
        }
    else:
        splits = {
            split: {language: _downloaded(data, f"{stem}.{language}.gz") for language in languages}
            for split, stem in MULTI30K_STEMS.items()
        }
    return _parallel(data, TextFiles(splits))


def _languages(data: DataConfig) -> tuple[str, ...]:
    """The two languages; the target alone where data.source is empty, as for a language model."""
    if not data.target or data.source == data.target:
        raise UserError(f"data.source={data.source!r} and data.target={data.target!r} must name two languages.")
    return (data.source, data.target) if data.source else (data.target,)


def _existing(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The first of the names, plain or gzipped, that is in one of the folders. UserError: none is."""
    for folder in folders:
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    others = f" (nor as {', '.join(names[1:])})" if len(names) > 1 else ""
    raise UserError(f"There is no file {folders[-1] / names[0]}, plain or as .gz{others}: add it or change data.dir.")


def _downloaded(data: DataConfig, name: str) -> Path:
    path = cache_root(data) / "downloads" / "multi30k" / name
    with locked(path):
        if not path.exists():
            try:
                with urllib.request.urlopen(MULTI30K_URL + name, timeout=60) as response:
                    content = response.read()
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                raise UserError(
                    f"{MULTI30K_URL}{name} could not be downloaded ({error}): clone that repository elsewhere and name "
                    "its folder in data.dir."
                ) from error
            if hashlib.sha256(content).hexdigest() != MULTI30K_SHA256.get(name, hashlib.sha256(content).hexdigest()):
                raise UserError(
                    f"{MULTI30K_URL}{name} is not the file of revision a3d2e0d: clone the revision that you want and "
                    "name its folder in data.dir."
                )
            with writing(path) as temporary:
                temporary.write_bytes(content)
    return path


FOLDER_STEMS = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


def _files(data: DataConfig) -> Source:
    """Any parallel text: `data.dir` with {train,validation,test}.{source,target}, or the paths of one pair of files.

    The folder's validation files may be called val, valid or dev, and every file may be gzipped. A pair of files is
    split by a hash of the source line into 90 / 5 / 5 percent, so that no source sentence is in two splits; its fields
    are called source and target. With an empty `data.source` there is one text only, for a language model.
    """
    names = _languages(data)
    if data.dir:
        folder = Path(data.dir).expanduser()
        splits = {
            split: {name: _existing([folder], [f"{stem}.{name}" for stem in stems]) for name in names}
            for split, stems in FOLDER_STEMS.items()
        }
        return _parallel(data, TextFiles(splits))
    fields = ("source", "target")[-len(names) :]
    paths = {field: Path(name).expanduser() for field, name in zip(fields, names, strict=True)}
    for field, path in paths.items():
        if not path.is_file():
            raise UserError(f"There is no file data.{field}={path}: give a text file, or name a folder in data.dir.")
    return _parallel(data, TextFiles({"all": paths}, hashed=True), **dict(zip(names, fields, strict=True)))


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "quantities": functools.partial(_embedded, "Quantities"),
    "docstrings": functools.partial(_embedded, "Docstrings"),
    "multi30k": _multi30k,
    "files": _files,
    "summaries": functools.partial(_embedded, "Summaries"),
    "languages": functools.partial(_embedded, "Languages"),
    "prompts": functools.partial(_embedded, "Prompts"),
    "sst2": lambda data: _records(data, text_files.sst2(data)),
    "scitldr": lambda data: _records(data, text_files.scitldr(data)),
    "text": _text_file,
}
