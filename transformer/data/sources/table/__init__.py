"""The user's own files as a dataset: text, CSV, TSV, JSON lines, Parquet, and Arrow as `datasets` saves it.

`paths` finds the files, `formats` reads each form, `roles` says which column holds what, `splits` who belongs to which
split, and `prepared` writes the store. The other sources of texts are settings of it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformer.config import DataConfig
from transformer.data.sources.source import Source
from transformer.data.sources.table import formats, paths, roles
from transformer.data.sources.table.paths import File
from transformer.data.sources.table.prepared import LABEL, Part, Rows, Table
from transformer.data.sources.table.roles import CONVERSIONS, Place, as_text, texts_of
from transformer.data.sources.table.splits import parse
from transformer.errors import UserError


def files_of(data: DataConfig) -> tuple[list[File], dict[str, float]]:
    """The files of `data.files`, or of `data.mix` with the weights of its members. UserError: neither names any, or
    both do."""
    if bool(data.files) == bool(data.mix):
        found = "both" if data.files else "neither"
        raise UserError(
            f"{data.name} reads data.files or data.mix, and {found} is set: name files, as data.files=a.csv."
        )
    return paths.mixture(data.mix, data.dir) if data.mix else (paths.expanded(data.files, data.dir, "data.files"), {})


def table(data: DataConfig) -> Source:
    """The rows of `data.files` or `data.mix`, with the columns of `data.columns`, split as `data.split` says.

    Fields: text, or source and target; references and label, where there are such columns. `data.source` and
    `data.target` may have any value: they mean these fields.
    """
    files, weights = files_of(data)
    found = roles.roles_of(files, data.columns, CONVERSIONS)
    found = roles.text_roles(found, files, data.columns)
    texts = tuple(CONVERSIONS[role][0] for role in CONVERSIONS if role in found and role != LABEL)
    aliases = {"source": data.source, "target": data.target} if "source" in found else {"text": data.target}
    rule = parse(data.split, all(file.split for file in files))
    if weights and rule.kind in ("percent", "counts"):
        raise UserError(
            f"data.split={data.split!r} cuts all rows in their order, so that members of data.mix would be in one "
            "split only: write 'hash:90/5/5', or name files by their splits."
        )
    return Table(
        data.name,
        tuple(part(file, found, data.documents) for file in files),
        texts,
        labelled=LABEL in found,
        rule=rule,
        described=[found, data.documents],
        code=(formats, roles),
        known_classes=_classes(files, found[LABEL]) if LABEL in found else (),
        weights=weights,
        aliases={other: field for field, other in aliases.items() if other not in found},
    ).prepare(data)


def _classes(files: list[File], column: str) -> tuple[str, ...]:
    """The names of the classes that the files give to numbers; () where they give none. UserError: two differ."""
    first, *others = [(file, formats.classes_of(file, column)) for file in files]
    for file, names in others:
        if names != first[1]:
            raise UserError(
                f"{first[0].path} names the classes {', '.join(first[1]) or 'of none'} and {file.path} "
                f"{', '.join(names) or 'of none'}, in that order: write them in one."
            )
    return first[1]


def part(file: File, found: Mapping[str, str], documents: str) -> Part:
    """The rows of a file, with the columns of these roles."""
    unit, read = formats.unit_of(file), functools.partial(_rows, file, found, documents)
    return Part((file.path,), read, unit, file.split, file.member)


def _rows(file: File, found: Mapping[str, str], documents: str, told: Callable[[int], Any]) -> Iterator[Rows]:
    for block in formats.read(file, list(dict.fromkeys(found.values())), documents, told):
        values = {}
        for role, column in found.items():
            field, convert = CONVERSIONS[role]
            own = block.values[column]
            plain = texts_of(own) if convert is as_text else None
            if plain is None:
                places = (Place(file, column, number) for number in block.numbers)
                plain = [convert(value, place) for value, place in zip(own, places, strict=True)]
            values[field] = plain
        yield Rows(block.numbers, values)
