"""Parallel text files: line n of one file is the translation of line n of the other."""

import dataclasses
import functools
import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import FORM, Dataset
from transformer.data.sources.files import existing, is_json, lines_of, refuse_json
from transformer.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """The files of a dataset: split -> field -> file, plain or compressed UTF-8 with one example per line. With
    `hashed` there is only one pair of files, and a hash of the first field decides the split of a line."""

    splits: Mapping[str, Mapping[str, Path]]
    hashed: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(next(iter(self.splits.values())))

    def fingerprint(self, name: str) -> str:
        """FORM and the hex digest of all examples with their splits, which are also checked. UserErrors: files of
        unequal length, an empty file, no UTF-8, a split without an example."""
        digest = hashlib.sha256(json.dumps([name, self.fields, self.hashed]).encode())
        counts: Counter[str] = Counter()
        for part, files in self.splits.items():
            dropped = 0
            for lines in _aligned(files):
                if all(lines):
                    split = self._split_of(part, lines)
                    digest.update(json.dumps([split, *lines]).encode())
                    counts[split] += 1
                else:
                    dropped += 1
            if dropped:
                paths = " and ".join(str(path) for path in files.values())
                logger.warning("%d examples of %s are left out: one side is an empty line", dropped, paths)
        for split in self.split_names:
            if not counts[split]:
                named = " and ".join(map(str, self.splits[self._part_of(split)].values()))
                found = f"{counts.total()} examples in all" if self.hashed else f"no example in {split}"
                raise UserError(f"{named} give {found}, too few for {', '.join(self.split_names)}: add text.")
        return FORM + digest.hexdigest()

    @property
    def split_names(self) -> tuple[str, ...]:
        return ("train", "validation", "test") if self.hashed else tuple(self.splits)

    def examples(self, split: str) -> Iterator[dict[str, str]]:
        """The examples of a split in file order, without those that have an empty line on one side."""
        part = self._part_of(split)
        for lines in _aligned(self.splits[part]):
            if all(lines) and self._split_of(part, lines) == split:
                yield dict(zip(self.fields, lines, strict=True))

    def _part_of(self, split: str) -> str:
        return next(iter(self.splits)) if self.hashed else split

    def _split_of(self, part: str, lines: tuple[str, ...]) -> str:
        if not self.hashed:
            return part
        # A hash of the text only, however its accents are written, so that the same sentence is never in two splits.
        text = unicodedata.normalize("NFC", lines[0])
        bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 20
        return {0: "validation", 1: "test"}.get(bucket, "train")


def _aligned(files: Mapping[str, Path]) -> Iterator[tuple[str, ...]]:
    """The n-th lines of all files, without surrounding white space."""
    readers = [lines_of(path) for path in files.values()]
    for number, lines in enumerate(zip_longest(*readers)):
        if None in lines:
            counted = " but ".join(
                f"{path} has {number + (line is not None) + sum(1 for _ in reader)} lines"
                for path, line, reader in zip(files.values(), lines, readers, strict=True)
            )
            raise UserError(f"{counted}: line n of one must translate line n of the other.")
        yield lines


def parallel_text(name: str, files: TextFiles, **options: Any) -> Dataset:
    """The dataset of these files. UserError: one is empty, or cannot be read."""
    for path in (path for part in files.splits.values() for path in part.values()):
        if is_json(next(lines_of(path))):
            logger.warning("%s begins with a JSON object, and its lines are read as they stand", path)
    splits = {split: functools.partial(files.examples, split) for split in files.split_names}
    features = {field: tfds.features.Text() for field in files.fields}
    return Dataset(name, features, splits, functools.partial(files.fingerprint, name), **options)


def languages_of(data: DataConfig) -> tuple[str, ...]:
    """The two languages; only the target if data.source is empty, as for a language model."""
    if not data.target or data.source == data.target:
        raise UserError(f"data.source={data.source!r} and data.target={data.target!r} must name two languages.")
    return (data.source, data.target) if data.source else (data.target,)


FOLDER_STEMS = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


def files(data: DataConfig) -> Dataset:
    """Any parallel text: `data.dir` with {train,validation,test}.{source,target}, or the paths of one pair of files.

    The folder's validation files may be called val, valid or dev, and every file may be compressed. A pair of files is
    split by a hash of the source line into 90 / 5 / 5 percent, so that no source sentence is in two splits; its fields
    are called source and target. With an empty `data.source` there is only one text, for a language model.
    """
    names = languages_of(data)
    if data.dir:
        folder = Path(data.dir).expanduser()
        splits = {
            split: {name: existing([folder], [f"{stem}.{name}" for stem in stems]) for name in names}
            for split, stems in FOLDER_STEMS.items()
        }
        return parallel_text(data.name, TextFiles(splits))
    fields = ("source", "target")[-len(names) :]
    paths = {field: Path(name).expanduser() for field, name in zip(fields, names, strict=True)}
    for field, path in paths.items():
        if not path.is_file():
            raise UserError(f"There is no file data.{field}={path}: give a text file, or name a folder in data.dir.")
        refuse_json(path)
    aliases = dict(zip(names, fields, strict=True))
    return parallel_text(data.name, TextFiles({"all": paths}, hashed=True), aliases=aliases)
