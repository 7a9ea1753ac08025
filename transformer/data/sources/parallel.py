"""Parallel text files: line n of one file is the translation of line n of the other."""

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from transformer.config import DataConfig
from transformer.data.sources.files import existing, is_json, lines_of, refuse_json
from transformer.data.sources.source import Source
from transformer.data.sources.table import Part, Rows, Table
from transformer.data.sources.table.formats import ROWS
from transformer.data.sources.table.splits import BY_FILES, BY_HASH, Rule
from transformer.errors import UserError

logger = logging.getLogger(__name__)


def parallel_text(
    name: str, splits: Mapping[str, Mapping[str, Path]], data: DataConfig, rule: Rule = BY_FILES, **options: Any
) -> Source:
    """The table of these files, split -> field -> file, plain or compressed UTF-8 with one example a line; an example
    with an empty line on one side is left out. UserErrors: files of unequal length, an empty file, no UTF-8, a split
    without an example."""
    for path in (path for files in splits.values() for path in files.values()):
        if is_json(next(lines_of(path))):
            logger.warning("%s begins with a JSON object, and its lines are read as they stand", path)
    parts = []
    for split, files in splits.items():
        read = functools.partial(_aligned, list(files.values()), list(files))
        parts.append(Part(tuple(files.values()), read, split=split))
    fields = tuple(next(iter(splits.values())))
    return Table(name, tuple(parts), fields, rule=rule, code=(sys.modules[__name__],), **options).prepare(data)


def _aligned(paths: Sequence[Path], fields: Sequence[str], told: Callable[[int], Any]) -> Iterator[Rows]:
    """The n-th lines of all files, without surrounding white space."""
    readers = [lines_of(path, told) for path in paths]
    rows, first = zip_longest(*readers), 1
    while some := list(islice(rows, ROWS)):
        if None in some[-1]:
            whole = next(number for number, lines in enumerate(some) if None in lines)
            ended = [line is None for line in some[whole]]
            counts = []
            for path, over, reader, column in zip(paths, ended, readers, zip(*some, strict=True), strict=True):
                more = 0 if over else sum(line is not None for line in column[whole:]) + sum(1 for _ in reader)
                counts.append(f"{path} has {first - 1 + whole + more} lines")
            raise UserError(f"{' but '.join(counts)}: line n of one must translate line n of the other.")
        columns = [list(column) for column in zip(*some, strict=True)]
        yield Rows(range(first, first + len(some)), dict(zip(fields, columns, strict=True)))
        first += len(some)


def languages_of(data: DataConfig) -> tuple[str, ...]:
    """The two languages; only the target if data.source is empty, as for a language model."""
    if not data.target or data.source == data.target:
        raise UserError(f"data.source={data.source!r} and data.target={data.target!r} must name two languages.")
    return (data.source, data.target) if data.source else (data.target,)


FOLDER_STEMS = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


def files(data: DataConfig) -> Source:
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
        return parallel_text(data.name, splits, data)
    fields = ("source", "target")[-len(names) :]
    paths = {field: Path(name).expanduser() for field, name in zip(fields, names, strict=True)}
    for field, path in paths.items():
        if not path.is_file():
            raise UserError(f"There is no file data.{field}={path}: give a text file, or name a folder in data.dir.")
        refuse_json(path)
    aliases = dict(zip(names, fields, strict=True))
    return parallel_text(data.name, {"": paths}, data, BY_HASH, aliases=aliases)
