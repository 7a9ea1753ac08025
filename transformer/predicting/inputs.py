"""What a user names to be predicted: lines, columns of tables, files, folders and patterns."""

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer.data.sources import audio_table, pictures
from transformer.data.sources.source import choose
from transformer.data.sources.table.formats import columns_of, read
from transformer.data.sources.table.paths import File, form_of
from transformer.data.sources.table.roles import Place, as_text
from transformer.errors import UserError
from transformer.paths import local
from transformer.tasks import Forecasting, ImageClassification, SpeechClassification
from transformer.tasks.texts import SpeechRecognition, Translation
from transformer.tasks.trained import Trained
from transformer.writing.given import read_lines


class Inputs(NamedTuple):
    """Inputs of `predict`, and what each is called: the first fields of what is written about it."""

    values: Sequence[Any]
    called: Sequence[dict[str, Any]]


def inputs_of(trained: Trained, named: Sequence[str], column: str, typed: Callable[[], bytes]) -> Inputs:
    """The inputs that --input names, or without it those that `typed` returns, standard input: lines of text, or paths
    of images and recordings, one a line. UserErrors: there is no such file or column, a folder holds none, --input is
    missing for a series, or --column is for a table of texts and this is none."""
    task = trained.task
    if column and not (task.reads_text and named):
        raise UserError(f"--column={column} is for a table of texts: leave it out, or name the table in --input")
    if isinstance(task, Forecasting):
        if not named:
            raise UserError("--input is missing: name a file with the last steps of a series, such as --input=mine.csv")
        paths = [path for entry in named for path in _matching(entry, ())]
        return Inputs(paths, [{"path": str(path)} if len(paths) > 1 else {} for path in paths])
    if isinstance(task, ImageClassification | SpeechClassification | SpeechRecognition):
        endings = pictures.ENDINGS if isinstance(task, ImageClassification) else audio_table.ENDINGS
        given = [path for entry in named for path in _matching(entry, endings)]
        paths = given if named else [local(line, "a path of the input") for line in read_lines(typed()) if line]
        return Inputs(paths, [{"path": str(path)} for path in paths])
    if len(named) > 1:
        raise UserError(f"--input={named[1]} is a second file of texts: name one at a time")
    path = local(named[0], "--input") if named else None
    if path is not None and (column or _is_table(path)):
        texts = _column(path, column or _default_column(trained))
        return Inputs(texts, [{"row": number} for number in range(1, len(texts) + 1)])
    lines = read_lines(typed() if path is None else _content(path))
    return Inputs(lines, [{"line": number} for number in range(1, len(lines) + 1)])


def _matching(entry: str, endings: Sequence[str]) -> Iterator[Path]:
    """The files of an entry of --input: a file, a pattern, or a folder, of which all files with these endings."""
    path = local(entry, "--input")
    paths = [path] if path.exists() else sorted(Path(each) for each in glob.glob(str(path), recursive=True))
    if not paths:
        raise UserError(f"--input={entry} names no file: correct it")
    for each in paths:
        if not each.is_dir():
            yield each
            continue
        held = sorted(file for file in each.rglob("*") if file.suffix.lower() in endings and file.is_file())
        if not held:
            held_none = f" without a file of {', '.join(endings)}" if endings else ", and a series is a file"
            raise UserError(f"--input={entry} is a folder{held_none}: name files")
        yield from held


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--input={path} cannot be read: {error.strerror}") from error


def _is_table(path: Path) -> bool:
    """Whether the ending of a file says that it is a table; any other is a file of lines."""
    try:
        return form_of(path) != "text"
    except UserError:
        return False


def _default_column(trained: Trained) -> str:
    """The column that the run was trained on, by its role."""
    columns = trained.config.data.columns
    return columns.source or "source" if isinstance(trained.task, Translation) else columns.text or "text"


def _column(path: Path, column: str) -> list[str]:
    """The texts of a column, as training reads them. UserErrors: there is no such column, a value is no text."""
    file = File(path, form_of(path))
    names = columns_of(file)
    if column not in names:
        raise UserError(f"{path} has no column {column!r}: name one in --column, {choose(column, names)}.")
    return [
        as_text(value, Place(file, column, number))
        for block in read(file, [column], "line")
        for number, value in zip(block.numbers, block.values[column], strict=True)
    ]
