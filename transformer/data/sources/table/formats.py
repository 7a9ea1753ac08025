"""Reads files of every form as blocks of rows: text, CSV, TSV, JSON lines, Parquet and Arrow. Errors name file and row.

A row is numbered by its line in a file of lines, and from 1 in Parquet and Arrow. A column inside of another is named
with a point, as "translation.en".
"""

import contextlib
import csv
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from transformer.data.sources.files import Told, raw_lines, read_text
from transformer.data.sources.table.paths import File
from transformer.errors import UserError

ROWS = 4096  # of a block of what is not lines
csv.field_size_limit(2**31 - 1)


class Numbered(str):
    """The number of a column, as a text, of a file without a header."""


class Block(NamedTuple):
    """Some rows of a file: the number of each, and the values of each column."""

    numbers: Sequence[int]
    values: dict[str, list[Any]]


class Form(NamedTuple):
    """How files of one form are read."""

    unit: str  # what a number of a row counts
    names: Callable[[Path], tuple[str, ...]]  # the columns of a file; () where it has no header
    read: Callable[[Path, Sequence[str], Told | None], Iterator[Block]]  # the rows, with these columns
    classes: Callable[[Path, str], tuple[str, ...]] = lambda path, column: ()  # names of the classes of a column


def columns_of(file: File, numbered: bool = False) -> tuple[str, ...]:
    """The names of the columns of a file; with `numbered`, it has no header, and they are "1", "2", ... UserError: it
    cannot be read."""
    form = FORMATS[file.form]
    names = form.names(file.path)
    return tuple(Numbered(number) for number in range(1, len(names) + 1)) if numbered else names


def read(file: File, columns: Sequence[str], documents: str, told: Told | None = None) -> Iterator[Block]:
    """The rows of a file, with these columns. `documents`: "line" or "file", an example of a text file."""
    if file.form == "text" and documents == "file":
        yield Block([1], {"text": [read_text(file.path, told)]})
        return
    yield from FORMATS[file.form].read(file.path, columns, told)


def unit_of(file: File) -> str:
    """What the numbers of its rows count."""
    return FORMATS[file.form].unit


def classes_of(file: File, column: str) -> tuple[str, ...]:
    """The names of the classes that a column's numbers mean, where the file says so (ClassLabel of `datasets`)."""
    return FORMATS[file.form].classes(file.path, column)


# --- Text


def _text_rows(path: Path, columns: Sequence[str], told: Told | None) -> Iterator[Block]:
    for first, lines in raw_lines(path, told):
        yield Block(range(first, first + len(lines)), {"text": lines})


# --- CSV and TSV


def _separated(path: Path, told: Told | None, separator: str) -> Generator[tuple[int, list[str]], None, None]:
    """(line, fields) of each row that is not blank. Fields of CSV may be quoted (RFC 4180); those of TSV are as they
    stand, since a tab or a line feed cannot be in one (IANA, text/tab-separated-values)."""
    lines = (f"{line}\n" for _, some in raw_lines(path, told) for line in some)
    quoting: Any = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path} is no CSV file in line {begin} ({error}): correct it.") from error
        if row and (len(row) > 1 or row[0].strip()):
            yield begin, row


def _header(path: Path, separator: str) -> tuple[str, ...]:
    with contextlib.closing(_separated(path, None, separator)) as rows:
        _, header = next(rows, (0, []))
    names = tuple(name.strip() for name in header)
    other = next((mark for mark in ";\t|" if mark != separator and len(names) == 1 and mark in names[0]), None)
    if other:
        kind = "commas" if separator == "," else "tabs"
        raise UserError(
            f"{path} has {other!r} between fields in line 1: write {kind}, or name it .tsv if they are tabs."
        )
    if not names:
        raise UserError(f"{path} has no row: give a file with a header and one example a row.")
    return names


def _separated_rows(separator: str) -> Callable[[Path, Sequence[str], Told | None], Iterator[Block]]:
    def rows(path: Path, columns: Sequence[str], told: Told | None) -> Iterator[Block]:
        names = _header(path, separator)
        headed = all(column in names and not isinstance(column, Numbered) for column in columns)
        places = [names.index(column) if headed else int(column) - 1 for column in columns]
        kept: list[tuple[int, list[str]]] = []
        found = _separated(path, told, separator)
        if headed:
            next(found)
        for line, row in found:
            if len(row) != len(names):
                raise UserError(
                    f"{path} has {len(row)} fields in line {line}, and {len(names)} in its first: correct it, or quote "
                    "what holds a separator."
                )
            kept.append((line, row))
            if len(kept) == ROWS:
                yield _block(kept, columns, places)
                kept = []
        if kept:
            yield _block(kept, columns, places)

    return rows


def _block(rows: list[tuple[int, list[str]]], columns: Sequence[str], places: Sequence[int]) -> Block:
    values = {column: [row[place] for _, row in rows] for column, place in zip(columns, places, strict=True)}
    return Block([line for line, _ in rows], values)


# --- JSON lines


def _objects(path: Path, told: Told | None) -> Generator[tuple[int, dict[str, Any]], None, None]:
    for first, lines in raw_lines(path, told):
        for number, line in enumerate(lines, start=first):
            if line.strip():
                yield number, _object(path, number, line)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object of a line. UserError: it is none."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
        raise UserError(
            f"{path} is no JSON in line {number} ({reason}): write one object a line, or fetch it again."
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path} has {named(row)} in line {number}, where an object belongs: write one object a line.")
    return row


def named(value: Any) -> str:
    """A value of JSON, as a sentence calls it."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _keys(path: Path) -> tuple[str, ...]:
    with contextlib.closing(_objects(path, None)) as rows:
        _, row = next(rows, (0, {}))
    if not row:
        raise UserError(f"{path} has no object: write one a line.")
    return tuple(_flat_keys(row))


def _flat_keys(row: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in row.items():
        yield from _flat_keys(value, f"{before}{key}.") if isinstance(value, dict) and value else [f"{before}{key}"]


def _json_rows(path: Path, columns: Sequence[str], told: Told | None) -> Iterator[Block]:
    numbers: list[int] = []
    values: dict[str, list[Any]] = {column: [] for column in columns}
    for number, row in _objects(path, told):
        for column in columns:
            values[column].append(_member(path, number, row, column))
        numbers.append(number)
        if len(numbers) == ROWS:
            yield Block(numbers, values)
            numbers, values = [], {column: [] for column in columns}
    if numbers:
        yield Block(numbers, values)


def _member(path: Path, number: int, row: dict[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, dict) or key not in value:
            held = ", ".join(_flat_keys(row)) or "none"
            raise UserError(f"{path} has no field {column!r} in line {number} (its fields are {held}): add it.")
        value = value[key]
    return value


# --- Parquet and Arrow


def _arrow_names(schema: pyarrow.Schema) -> tuple[str, ...]:
    return tuple(_flat_fields(schema, ""))


def _flat_fields(fields: Any, before: str) -> Iterator[str]:
    for field in fields:
        if pyarrow.types.is_struct(field.type):
            yield from _flat_fields(field.type, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}"


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no Parquet file that can be read ({_brief(error)}): fetch it again.") from error


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[Any]:
    """A reader of batches of an Arrow file, in the form of a stream, as `datasets` writes it, or of a file."""
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                yield pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                source.seek(0)
                yield _Batches(pyarrow.ipc.open_file(source))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no Arrow file that can be read ({_brief(error)}): fetch it again.") from error


class _Batches:
    """The batches of an Arrow file one after another."""

    def __init__(self, file: Any) -> None:
        self.schema, self._file = file.schema, file

    def __iter__(self) -> Iterator[pyarrow.RecordBatch]:
        return (self._file.get_batch(number) for number in range(self._file.num_record_batches))


def _brief(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _parquet_names(path: Path) -> tuple[str, ...]:
    with _parquet(path) as file:
        return _arrow_names(file.schema_arrow)


def _parquet_rows(path: Path, columns: Sequence[str], told: Told | None) -> Iterator[Block]:
    with _parquet(path) as file:
        groups = max(file.num_row_groups, 1)
        read, first = 0, 1
        for batch in file.iter_batches(ROWS, columns=list(columns)):
            yield _rows_of(batch, columns, first)
            first += batch.num_rows
            now = path.stat().st_size * first // max(file.metadata.num_rows, groups)
            if told:
                told(now - read)
            read = now


def _arrow_file_names(path: Path) -> tuple[str, ...]:
    with _stream(path) as batches:
        return _arrow_names(batches.schema)


def _arrow_rows(path: Path, columns: Sequence[str], told: Told | None) -> Iterator[Block]:
    first = 1
    with _stream(path) as batches:
        for whole in batches:
            for start in range(0, whole.num_rows, ROWS):
                batch = whole.slice(start, ROWS)
                yield _rows_of(batch, columns, first)
                first += batch.num_rows
            if told:
                told(whole.nbytes)


def _rows_of(batch: pyarrow.RecordBatch, columns: Sequence[str], first: int) -> Block:
    table = pyarrow.Table.from_batches([batch])
    while any(pyarrow.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return Block(range(first, first + batch.num_rows), {column: table[column].to_pylist() for column in columns})


def _names_of_classes(schema: pyarrow.Schema, column: str) -> tuple[str, ...]:
    """The names of a ClassLabel in the schema that `datasets` writes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[column].get("names", ()))
    except (KeyError, ValueError, TypeError, AttributeError):
        return ()


def _parquet_classes(path: Path, column: str) -> tuple[str, ...]:
    with _parquet(path) as file:
        return _names_of_classes(file.schema_arrow, column)


def _arrow_classes(path: Path, column: str) -> tuple[str, ...]:
    with _stream(path) as batches:
        return _names_of_classes(batches.schema, column)


FORMATS: dict[str, Form] = {
    "text": Form("line", lambda path: ("text",), _text_rows),
    "csv": Form("line", lambda path: _header(path, ","), _separated_rows(",")),
    "tsv": Form("line", lambda path: _header(path, "\t"), _separated_rows("\t")),
    "json": Form("line", _keys, _json_rows),
    "parquet": Form("row", _parquet_names, _parquet_rows, _parquet_classes),
    "arrow": Form("row", _arrow_file_names, _arrow_rows, _arrow_classes),
}
