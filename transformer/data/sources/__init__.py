"""SOURCES, by name, and `load_source`, which prepares them.

A row maps the `data` part of a config to the source of the user's own files, or to a description of a dataset that TFDS
stores (data/builder.py); None means the TFDS dataset of that name. Names that are no row are looked up among the
datasets of TFDS.
"""

import dataclasses
import functools
from collections.abc import Callable

from transformer.config import DataConfig
from transformer.data.builder import Dataset, prepared
from transformer.data.sources import (
    audio_table,
    image_folder,
    images,
    multi30k,
    named,
    parallel,
    recordings,
    series,
    table,
    text_files,
)
from transformer.data.sources.built import from_builder
from transformer.data.sources.source import Source
from transformer.errors import UserError


def _builtin(name: str, data: DataConfig) -> Dataset:
    del data  # it has no options
    # Imported here because the generators are slow to import.
    from transformer.data.builtin import docstrings, languages, leads, prompts, quantities, summaries

    modules = (docstrings, languages, leads, prompts, quantities, summaries)
    return {module.__name__.rpartition(".")[2]: module for module in modules}[name].dataset()


SOURCES: dict[str, Callable[[DataConfig], Dataset | Source | None]] = {
    "table": table.table,
    "image_folder": image_folder.image_folder,
    "audio_table": audio_table.audio_table,
    "quantities": functools.partial(_builtin, "quantities"),
    "docstrings": functools.partial(_builtin, "docstrings"),
    "multi30k": multi30k.captions,
    "files": parallel.files,
    "mnist": images.mnist,
    "digits": images.digits,
    "fsdd": recordings.fsdd,
    "digit_strings": recordings.digit_strings,
    "ett": series.ett,
    "co2": series.co2,
    "series": series.series,
    "summaries": functools.partial(_builtin, "summaries"),
    "leads": functools.partial(_builtin, "leads"),
    "languages": functools.partial(_builtin, "languages"),
    "prompts": functools.partial(_builtin, "prompts"),
    "sst2": text_files.sst2,
    "scitldr": text_files.scitldr,
    "text": text_files.text,
}
# Sources that are one long text, whose rows have neither BOS nor EOS.
CONTIGUOUS = ("text",)
READ_FILES = ("table", "text", "image_folder", "audio_table", "series")  # sources that read `data.files`
_OF_NONE = frozenset(SOURCES) - frozenset(READ_FILES)  # those of plugins may read them


def load_source(data: DataConfig) -> Source:
    """The dataset that `data.name`, `data.dir` and `data.files` name, prepared if necessary. UserErrors: there is none,
    it reads no `data.files` and some are named, or it has no split `data.validation`."""
    named_files = next(iter(data.files or data.mix), "")
    if named_files and (data.name in _OF_NONE or data.name not in SOURCES):
        key = "data.files" if data.files else "data.mix"
        raise UserError(
            f"{key} names {named_files!r}, and data.name={data.name!r} reads no files of your own: set data.name to "
            f"{', '.join(READ_FILES[:-1])} or {READ_FILES[-1]}."
        )
    name = data.name.split("/")[0]
    describe = SOURCES.get(name if name in recordings.OF_SPEAKERS else data.name)
    dataset = describe(data) if describe else None
    if dataset is None:
        source = named.load(data, SOURCES)
    elif isinstance(dataset, Source):
        source = dataclasses.replace(dataset, contiguous=data.name in CONTIGUOUS)
    else:
        builder = prepared(dataset, data)
        fingerprint = builder.info.metadata["fingerprint"]
        source = from_builder(data.name, builder, fingerprint, dataset.facts, dataset.aliases)
    return source.validating(data.validation)
