"""Where examples come from: TFDS builders prepared as ArrayRecord files, read at random without TensorFlow.

`load_source` turns the `data` part of a config into a `Source`: its splits are sequences of dicts of strings, numbers
and arrays. SOURCES holds the names of our own; any other name is looked up among the TFDS datasets.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import http.client
import importlib
import logging
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.caching import cache_root, locked, writing
from transformer.data.sources import images, recordings, series, text_files
from transformer.data.sources.arrays import ArrayData, ArrayDataset
from transformer.data.sources.parallel import ParallelText, TextFiles
from transformer.data.sources.records import RecordDataset, Records
from transformer.data.sources.source import Source, choose, from_builder, prepare, quiet
from transformer.errors import UserError

logger = logging.getLogger(__name__)


def load_source(data: DataConfig) -> Source:
    """The dataset that `data.name` and `data.dir` mean, prepared if it was not. UserError: there is none."""
    name = data.name.split("/")[0]
    factory = SOURCES.get(name if name in recordings.OF_SPEAKERS else data.name)
    source = factory(data) if factory else _by_name(data)
    return dataclasses.replace(source, contiguous=data.name in CONTIGUOUS)


# TFDS registers its older datasets only as far as the first folder that wants TensorFlow; those of text come after it.
TFDS_TEXT_MODULES = ("text", "translate", "summarization", "question_answering", "text_simplification")


def _by_name(data: DataConfig) -> Source:
    """Any TFDS dataset: of data.dir, of TFDS's own folder, or downloaded and prepared in the cache folder."""
    with quiet():
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
            builder = prepare(lambda: tfds.builder(data.name, data_dir=cache_root(data) / "tfds"))
        except Exception as error:  # whatever a dataset's own code and the network raise
            raise UserError(
                f"{data.name} is not prepared on this machine and could not be downloaded ({_brief(error)}): prepare "
                'it where that works, with file_format="array_record", and name its folder in data.dir.'
            ) from error
    return from_builder(data.name, builder)


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
    from transformer.data.builtin import embedded  # only here: what it generates from is slow to import

    made = prepare(lambda: getattr(embedded, builder)(data_dir=cache_root(data) / "tfds"))
    return from_builder(data.name, made, made.info.metadata["fingerprint"])  # of every example


def _parallel(data: DataConfig, files: TextFiles, **aliases: str) -> Source:
    """Prepares text files; the folder is named after what they hold, so that changed files are prepared anew."""
    fingerprint = files.fingerprint(data.name)
    folder = cache_root(data) / "tfds"
    builder = prepare(lambda: ParallelText(files, name=data.name, fingerprint=fingerprint, data_dir=folder))
    return from_builder(data.name, builder, fingerprint, **aliases)


def _arrays(load: Callable[[DataConfig], ArrayData], data: DataConfig) -> Source:
    """Prepares arrays; the folder is named after what they hold."""
    made = load(data)
    builder = prepare(lambda: ArrayDataset(made, data_dir=cache_root(data) / "tfds"))
    return from_builder(data.name, builder, made.fingerprint)


def _mnist(data: DataConfig) -> Source:
    """MNIST's own files in `data.dir`, or else the dataset of that name as TFDS prepares it."""
    prepared = not data.dir or (Path(data.dir).expanduser() / "mnist").is_dir()
    return _by_name(data) if prepared else _arrays(images.mnist, data)


def _records(data: DataConfig, records: Records, **aliases: str) -> Source:
    """Prepares what was read from files; the folder is named after what they hold."""
    folder = cache_root(data) / "tfds"
    builder = prepare(lambda: RecordDataset(records, data_dir=folder))
    return from_builder(data.name, builder, records.identity, **aliases)


# Sources that are one long text: its rows have neither begin nor end.
CONTIGUOUS = ("text",)


def _text_file(data: DataConfig) -> Source:
    return _records(data, text_files.text(data), **{data.target: "text"})


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
            raise UserError(f"multi30k has no language {language!r}: {choose(language, MULTI30K_LANGUAGES)}.")
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
    "mnist": _mnist,
    "digits": functools.partial(_arrays, images.digits),
    "fsdd": functools.partial(_arrays, recordings.fsdd),
    "digit_strings": functools.partial(_arrays, recordings.digit_strings),
    "ett": functools.partial(_arrays, series.ett),
    "co2": functools.partial(_arrays, series.co2),
    "summaries": functools.partial(_embedded, "Summaries"),
    "leads": functools.partial(_embedded, "Leads"),
    "languages": functools.partial(_embedded, "Languages"),
    "prompts": functools.partial(_embedded, "Prompts"),
    "sst2": lambda data: _records(data, text_files.sst2(data)),
    "scitldr": lambda data: _records(data, text_files.scitldr(data)),
    "text": _text_file,
}
