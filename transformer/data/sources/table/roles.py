"""Which column of a table holds what (`data.columns`), and its values as the fields of examples."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformer.config import ColumnsConfig
from transformer.data.sources.source import choose
from transformer.data.sources.table.formats import Numbered, columns_of, named, unit_of
from transformer.data.sources.table.paths import File
from transformer.errors import UserError

TEXTS = ("text", "source", "target")  # roles that hold a text


def roles_of(files: Sequence[File], given: ColumnsConfig, wanted: Iterable[str]) -> dict[str, str]:
    """Role -> column, for the roles of `wanted` that `data.columns` names or the first file has as a column. A number
    is a column of files without a header. UserErrors: a file lacks a column that is named, or that the first has."""
    said = {role: name for role in wanted if (name := getattr(given, role))}
    own = columns_of(files[0])
    if twice := next((name for name in own if own.count(name) > 1), None):
        raise UserError(f"{files[0].path} has the column {twice!r} twice: rename one of them.")
    numbered = bool(said) and all(name.isdecimal() for name in said.values()) and not set(said.values()) <= set(own)
    numbers: dict[str, str] = {role: Numbered(name) for role, name in said.items()}
    roles = numbers if numbered else {role: said.get(role, role) for role in wanted if role in said or role in own}
    for file in files:
        names = columns_of(file, numbered)
        for role, name in roles.items():
            if name not in names:
                which = f"which data.columns.{role} names" if role in said else f"which {files[0].path} has"
                raise UserError(f"{file.path} has no column {name!r}, {which}: {choose(name, names)}.")
    return roles


def text_roles(roles: Mapping[str, str], files: Sequence[File], given: ColumnsConfig) -> dict[str, str]:
    """The roles of a table of texts: `text`, or `source` and `target`, and what else there is. The only column of a
    table is its text. UserErrors: none is a text; only one side of a pair is there."""
    roles = dict(roles)
    if not any(role in roles for role in TEXTS):
        others = [name for name in columns_of(files[0]) if name not in roles.values()]
        if len(others) != 1:
            raise UserError(
                f"{files[0].path} has the columns {', '.join(columns_of(files[0]))}, and none is called text, or "
                "source and target: name it in data.columns.text, or them in data.columns.source and "
                "data.columns.target; without a header, by their numbers from 1."
            )
        roles["text"] = others[0]
    for one, other in (("source", "target"), ("target", "source")):
        if one in roles and other not in roles:
            if "text" in roles and not getattr(given, one):
                del roles[one]  # a column that happens to be called so
                continue
            raise UserError(
                f"{files[0].path} has a {one} and no {other} (its columns are {', '.join(columns_of(files[0]))}): name "
                f"it in data.columns.{other}."
            )
    twice = [role for role in roles if list(roles.values()).count(roles[role]) > 1]
    if twice:
        both = " and ".join(f"data.columns.{role}" for role in twice)
        raise UserError(f"{both} name one column of {files[0].path}, {roles[twice[0]]!r}: name two.")
    return roles


# --- Values


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a value stands, for messages."""

    file: File
    column: str
    number: int

    def __str__(self) -> str:
        return f"{self.column!r} of {unit_of(self.file)} {self.number}"


def texts_of(values: Sequence[Any]) -> list[str] | None:
    """The values as `as_text` gives them, all at once; None where one of them needs a closer look."""
    if not all(type(value) is str for value in values):
        return None
    joined = "".join(values)
    try:
        joined.encode()
    except UnicodeEncodeError:
        return None
    return None if "\0" in joined else [value.strip() for value in values]


def as_text(value: Any, place: Place) -> str:
    """A value as a text without surrounding white space; null is the empty one. UserErrors: it is no text, or holds a
    NUL or half a character."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place.file.path} has {named(value)} in {place}, where a text belongs: correct it.")
    if "\0" in value or (not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise UserError(f"{place.file.path} has a NUL or half a character in {place}: take it out.")
    return value.strip()


def as_label(value: Any, place: Place) -> str | int:
    """A value as a label: a text, or a whole number. UserErrors: it is neither, or there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str | int) and (label := value.strip() if isinstance(value, str) else value) != "":
        return label
    found = "no label" if value is None or (isinstance(value, str) and not value.strip()) else named(value)
    raise UserError(f"{place.file.path} has {found} in {place}, where a class belongs: add it, or take the row out.")


def as_references(value: Any, place: Place) -> str:
    """A text, or a list of texts, as lines. UserErrors: see `as_text`."""
    texts = value if isinstance(value, list) else [value]
    return "\n".join(" ".join(as_text(text, place).split()) for text in texts)


CONVERSIONS: dict[str, tuple[str, Callable[[Any, Place], Any]]] = {  # role -> the field of an example, and its value
    **{role: (role, as_text) for role in TEXTS},
    "reference": ("references", as_references),
    "label": ("label", as_label),
}
