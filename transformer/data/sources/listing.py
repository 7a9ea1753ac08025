"""Which images or recordings there are, and their classes or texts: folders of classes, or tables with their paths.

`listed` prepares a table with one row for each file: its path, a digest of its bytes, and the class or the text. It is
read once, and again where a file changes in size or time.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer.config import DataConfig
from transformer.data.sources.side_by_side import in_threads
from transformer.data.sources.source import Source
from transformer.data.sources.table import formats, paths, roles
from transformer.data.sources.table.paths import STEMS, File
from transformer.data.sources.table.prepared import LABEL, Part, Rows, Table
from transformer.data.sources.table.roles import Place, as_label, as_text
from transformer.data.sources.table.splits import parse
from transformer.errors import UserError

logger = logging.getLogger(__name__)

DIGEST = "sha256"  # the field of the digest, by which a file has its split: equal files are in one
TOGETHER = 256  # rows


class Medium(NamedTuple):
    """What the files are."""

    role: str  # the key of data.columns that names the column of their paths, and the field of an example
    noun: str
    endings: tuple[str, ...]
    texts: tuple[str, ...] = ()  # roles of texts that may stand in place of a class

    @property
    def forms(self) -> str:
        """Its endings, for a sentence."""
        return ", ".join(self.endings)


class Item(NamedTuple):
    """A file, and what is known of it."""

    number: int  # of its row, or in its folder
    path: Path
    values: dict[str, Any]  # field -> label or text


class Group(NamedTuple):
    """Files whose class and split are known together: those of a folder of a class, or of a table."""

    title: str
    unit: str
    split: str
    items: list[Item]
    table: tuple[Path, ...] = ()  # that named them


def listed(data: DataConfig, medium: Medium) -> tuple[Source, Path]:
    """The table of the files, and the folder that its paths are relative to. UserErrors: a folder or a table does not
    say which files there are, or their classes; a file is missing; see `Table.prepare`."""
    groups = list(_groups(data, medium))
    root = Path(os.path.commonpath([item.path.parent.absolute() for group in groups for item in group.items]))
    rule = parse(data.split, all(group.split for group in groups))
    if rule.kind in ("percent", "counts"):
        groups = _shuffled(groups, root)
    fields = groups[0].items[0].values
    parts = [
        Part(
            (*group.table, *dict.fromkeys(item.path for item in group.items)),
            functools.partial(_rows, group, root, medium),
            group.unit,
            group.split,
            title=group.title,
        )
        for group in groups
    ]
    texts = (DIGEST, medium.role, *(role for role in medium.texts if role in fields))
    described = [medium.role, dataclasses.asdict(data.columns), [group.title for group in groups]]
    code = (sys.modules[__name__], formats, roles)
    table = Table(data.name, tuple(parts), texts, LABEL in fields, rule, described, code)
    return table.prepare(data), root


def _rows(group: Group, root: Path, medium: Medium, told: Callable[[int], Any]) -> Iterator[Rows]:
    digests = in_threads(lambda item: _digest(item.path), group.items)
    for start in range(0, len(group.items), TOGETHER):
        items = group.items[start : start + TOGETHER]
        values: dict[str, Any] = {field: [item.values[field] for item in items] for field in items[0].values}
        values[DIGEST] = []
        for digest, size in itertools.islice(digests, len(items)):
            values[DIGEST].append(digest)
            told(size)
        values[medium.role] = [os.path.relpath(item.path.absolute(), root) for item in items]
        yield Rows([item.number for item in items], values)


def _digest(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) of the bytes of a file, and how many there are. UserError: it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


def _shuffled(groups: list[Group], root: Path) -> list[Group]:
    """All files of folders as one group, in the order of a hash of their paths, since sizes would else cut off the last
    classes. Tables stay as they are."""
    if groups[0].table:
        return groups
    items = [item for group in groups for item in group.items]
    items.sort(key=lambda item: hashlib.sha256(os.fsencode(os.path.relpath(item.path.absolute(), root))).digest())
    numbered = [item._replace(number=number) for number, item in enumerate(items, start=1)]
    return [Group(str(root), groups[0].unit, "", numbered)]


# --- Folders, globs and tables


def _groups(data: DataConfig, medium: Medium) -> Iterator[Group]:
    """The groups of `data.files`, or of the folder `data.dir`."""
    if data.mix or not (data.files or data.dir):
        found = "data.mix is set" if data.mix else "neither is set"
        raise UserError(
            f"{data.name} reads the folder data.dir, with a folder for each class in it, or data.files, and {found}: "
            f"name a folder, or a table of paths as data.files={medium.role}s.csv."
        )
    folder = Path(data.dir).expanduser()
    if not data.files:
        if not folder.is_dir():
            raise UserError(f"data.dir={data.dir} is no folder: name the one that holds a folder for each class.")
        yield from _of_folder(folder, "", medium)
        return
    entries = [paths.split_and_pattern(entry) for entry in data.files]
    matches = [paths.matching(folder / Path(name).expanduser(), "data.files", name) for _, name in entries]
    is_table = {path: path.is_file() and not _is(path, medium) for some in matches for path in some}
    if any(is_table.values()):
        one, other = (next((path for path, own in is_table.items() if own is kind), None) for kind in (True, False))
        if other:
            raise UserError(f"data.files has the table {one} and also {other}: name tables, or {medium.noun}s.")
        yield from _of_tables(paths.expanded(data.files, data.dir, "data.files"), data, medium)
        return
    paths.say_splits(data.files, "data.files")
    for (split, _), some in zip(entries, matches, strict=True):
        for path in some:
            if path.is_dir():
                yield from _of_folder(path, split, medium)
        yield from _of_files([path for path in some if not path.is_dir()], split, medium)


def _is(path: Path, medium: Medium) -> bool:
    return path.suffix.lower() in medium.endings


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def _of_folder(folder: Path, split: str, medium: Medium) -> Iterator[Group]:
    """The folders of classes of a folder, or of the folders of splits in it."""
    inside = _visible(folder)
    folders = [path for path in inside if path.is_dir()]
    said = {path: STEMS.get(path.name.lower(), "") for path in folders}
    others = [path for path, name in said.items() if not name]
    training = [path for path, name in said.items() if name == "train"]
    if training and not split and (not others or any(path.is_dir() for path in _visible(training[0]))):
        if others:
            raise UserError(
                f"{folder} has the folder {training[0].name} of a split and also {others[0].name}: put the classes "
                f"into {training[0].name}, or rename it."
            )
        for path, name in said.items():
            yield from _of_folder(path, name, medium)
        return
    stray = [path for path in inside if path.is_file() and _is(path, medium)]
    if stray or not folders:
        example = folder / "CLASS" / (stray[0].name if stray else f"*{medium.endings[0]}")
        found = f"holds {stray[0].name} beside the folders" if stray and folders else "holds no folder"
        raise UserError(f"{folder} {found} of classes: put each {medium.noun} into one, as {example}.")
    for path in folders:
        yield from _of_class(path, split, medium)


def _of_class(folder: Path, split: str, medium: Medium) -> Iterator[Group]:
    """The files of a class, in all folders within its own."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    files = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    own = [path for path in files if _is(path, medium)]
    if not own:
        raise UserError(f"{folder} holds no {medium.noun} ({medium.forms}): add some, or remove the folder.")
    if len(own) < len(files):
        left = next(path for path in files if not _is(path, medium))
        told = "%d file(s) in %s are left out, first %s: %ss end in %s"
        logger.warning(told, len(files) - len(own), folder, left.name, medium.noun, medium.forms)
    yield _group(str(folder), split, own, folder.name, medium)


def _of_files(found: Sequence[Path], split: str, medium: Medium) -> Iterator[Group]:
    """Files that a glob names: the class is the name of the folder."""
    for folder in dict.fromkeys(path.parent for path in found):
        own = [path for path in found if path.parent == folder]
        yield _group(str(folder), split, own, folder.absolute().name, medium)


def _group(title: str, split: str, files: Sequence[Path], label: str, medium: Medium) -> Group:
    items = [Item(number, path, {LABEL: label}) for number, path in enumerate(files, start=1)]
    return Group(title, medium.noun, split, items)


def _of_tables(files: Sequence[File], data: DataConfig, medium: Medium) -> Iterator[Group]:
    """The files that tables name. UserErrors: a column is missing, a value is not what it should hold, a file is not
    there."""
    found = roles.roles_of(files, data.columns, (medium.role, *medium.texts, LABEL))
    wanted = " or ".join((*medium.texts, LABEL))
    needed = {medium.role: [medium.role], wanted: [*medium.texts, LABEL]}
    for name, any_of in needed.items():
        if not any(role in found for role in any_of):
            held = ", ".join(formats.columns_of(files[0]))
            keys = " or ".join(f"data.columns.{role}" for role in any_of)
            raise UserError(f"{files[0].path} has the columns {held}, and none is called {name}: name it in {keys}.")
    for file in files:
        items: list[Item] = []
        for block in formats.read(file, list(dict.fromkeys(found.values())), "line"):
            for row, number in enumerate(block.numbers):
                values = {
                    role: _value(role, block.values[column][row], Place(file, column, number))
                    for role, column in found.items()
                }
                items.append(Item(number, _existing(file, number, values.pop(medium.role), medium), values))
        if not items:
            raise UserError(f"{file.path} has no row: give one for each {medium.noun}.")
        yield Group(str(file.path), formats.unit_of(file), file.split, items, (file.path,))


def _value(role: str, value: Any, place: Place) -> Any:
    if role == LABEL:
        return as_label(value, place)
    text = as_text(value, place)
    if not text:
        what = "text" if role == "text" else "path"
        raise UserError(f"{place.file.path} has no {what} in {place}: add it, or take the row out.")
    return text


def _existing(file: File, number: int, name: str, medium: Medium) -> Path:
    path = file.path.parent / name
    if not path.is_file():
        raise UserError(
            f"{file.path} names the {medium.noun} {name} in {formats.unit_of(file)} {number}, and there is no file "
            f"{path}: correct it, or take it out."
        )
    return path
