"""Text files with their own formats: labelled lines, abstracts with summaries, one long text."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer.config import DataConfig
from transformer.data.sources.files import raw_lines, refuse_json
from transformer.data.sources.source import Source
from transformer.data.sources.table import Part, Rows, Table
from transformer.data.sources.table.one_text import one_text
from transformer.data.sources.table.paths import expanded
from transformer.errors import UserError

logger = logging.getLogger(__name__)

FILES = {"train": "train", "validation": "dev", "test": "test"}
SST2_CLASSES = {"0": "negative", "1": "positive"}
HEADERS = {"label", "labels", "class", "classes", "category", "sentiment", "polarity", "target"}  # names of a column


def _paths(data: DataConfig, ending: str) -> Mapping[str, Path]:
    """Split -> file of data.dir. UserError: one is missing."""
    if not data.dir:
        raise UserError(f"{data.name} needs data.dir: name the folder of train{ending}, dev{ending} and test{ending}.")
    folder = Path(data.dir).expanduser()
    paths = {split: folder / f"{stem}{ending}" for split, stem in FILES.items()}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"There is no file {path}: add it or change data.dir.")
    return paths


def sst2(data: DataConfig) -> Source:
    """The Stanford Sentiment Treebank with two classes (Socher et al., 2013): each line is a sentence, a tab and 0 or
    1.

    Fields: text, label. Other labels also work: the classes are the sorted labels of train.tsv. The fact `labels` maps
    a label of the files to the index of its class. A first line that names its columns (`HEADERS`) is left out.
    """
    parts = [
        Part((path,), functools.partial(_labelled_lines, path), split=split)
        for split, path in _paths(data, ".tsv").items()
    ]
    code = (sys.modules[__name__],)
    return Table(data.name, tuple(parts), ("text",), labelled=True, code=code, class_names=_names).prepare(data)


def _names(labels: list[str]) -> list[str]:
    return [SST2_CLASSES.get(label, label) for label in labels]


def _labelled_lines(path: Path, told: Callable[[int], Any]) -> Iterator[Rows]:
    """Texts and labels of a file, without its header. UserErrors: a line without one of them, more than two columns
    under a header, labels before the texts, no line at all."""
    lines = [line for _, some in raw_lines(path, told) for line in map(str.strip, some)]
    rows = [(number, *_labelled(path, number, line)) for number, line in enumerate(lines, start=1) if line]
    labels = [label for _, _, label in rows]
    if rows and labels[0].casefold() in HEADERS and labels.count(labels[0]) == 1:
        if "\t" in rows[0][1]:
            columns = ", ".join([*rows[0][1].split("\t"), labels[0]])
            raise UserError(f"{path} has the columns {columns}: keep two of them, the text and the label.")
        logger.warning("line 1 of %s is left out: it names the columns", path)
        rows, labels = rows[1:], labels[1:]
    if not rows:
        raise UserError(f"{path} has no text and label: write the text, a tab and the label.")
    if len(set(labels)) > len({text for _, text, _ in rows}):
        raise UserError(f"{path} has more labels than texts: write the text first, then a tab and the label.")
    tabs = {text.count("\t") for _, text, _ in rows}
    if len(rows) > 1 and len(tabs) == 1 and min(tabs):
        logger.warning("%s has %d columns, and all but the last are read as the text", path, min(tabs) + 2)
    numbers, texts, _ = zip(*rows, strict=True)
    yield Rows(numbers, {"text": texts, "label": labels})


def _labelled(path: Path, number: int, line: str) -> tuple[str, str]:
    text, tab, label = line.rpartition("\t")
    if not tab or not text.strip():
        raise UserError(f"{path} has no text and label in line {number}: write the text, a tab and the label.")
    return text.strip(), label.strip()


def scitldr(data: DataConfig) -> Source:
    """SciTLDR (Cachola et al., 2020): abstracts of papers and one-sentence summaries, in JSON lines. Fields: abstract,
    summary (the first reference) and references (all of them, one per line), for evaluation."""
    parts = [
        Part((path,), functools.partial(_read, path, _abstract), split=split)
        for split, path in _paths(data, ".jsonl").items()
    ]
    fields = ("abstract", "summary", "references")
    return Table(data.name, tuple(parts), fields, code=(sys.modules[__name__],)).prepare(data)


def _read(path: Path, row_of: Callable[[Path, int, str], dict[str, Any]], told: Callable[[int], Any]) -> Iterator[Rows]:
    """The rows of a file of lines, each read by `row_of`."""
    for first, lines in raw_lines(path, told):
        rows = {number: row_of(path, number, line) for number, line in enumerate(map(str.strip, lines), first) if line}
        for numbers in filter(None, [list(rows)]):
            names = rows[numbers[0]]
            yield Rows(numbers, {name: [row[name] for row in rows.values()] for name in names})


def _abstract(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        row: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UserError(f"{path} is no JSON in line {number} ({reason}): fetch it again.") from error
    if not isinstance(row, dict):
        raise UserError(f"{path} has {_named(row)} in line {number}, where an object belongs: write one a line.")
    source, target = (_strings(path, number, row, field) for field in ("source", "target"))
    abstract, references = _one_line(" ".join(source)), [_one_line(reference) for reference in target]
    if not abstract or not references or not all(references):
        raise UserError(f"{path} has no abstract or an empty summary in line {number}: take that line out.")
    return {"abstract": abstract, "summary": references[0], "references": "\n".join(references)}


def _strings(path: Path, number: int, row: Mapping[str, Any], field: str) -> list[str]:
    """The strings of a field. UserErrors: it is missing, no list of strings, or one of them is no text."""
    if field not in row:
        raise UserError(f"{path} has no field {field!r} in line {number}: add it, a list of strings.")
    value = row[field]
    wrong = [each for each in value if not isinstance(each, str)] if isinstance(value, list) else [value]
    if wrong:
        found = f"{path} has {_named(wrong[0])} in {field!r} of line {number}"
        raise UserError(f"{found}, where a list of strings belongs: correct it.")
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for text in value for letter in text):
        raise UserError(f"{path} has a NUL or half a character in {field!r} of line {number}: take it out.")
    return value


def _named(value: Any) -> str:
    """A value of JSON, as a sentence calls it."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def text(data: DataConfig) -> Source:
    """Text files as one document: those of `data.files`, one after another, or the file `data.target`, or input.txt in
    `data.dir`. Field: text.

    Lines end with line feeds, whatever they end with in the file, as in Python's text mode. The first 90 % of the
    characters are `train` and the last 10 % `validation`, as nanoGPT splits tinyshakespeare; `data.split` may name
    other sizes in percent. With two of them there is no third part: `test` is the same as `validation`, so nothing may
    be selected on it.
    """
    if data.files:
        found = expanded(data.files, data.dir, "data.files")
        if other := next((file for file in found if file.split not in ("", "train")), None):
            raise UserError(
                f"{other.path} is of the split {other.split}, and data.name=text joins its files and cuts them by "
                "characters: read them with data.name=table, or leave out all but those of train."
            )
        paths = [file.path for file in found]
    else:
        path = (Path(data.dir) / "input.txt" if data.dir else Path(data.target)).expanduser()
        if not path.is_file():
            raise UserError(
                f"There is no text file {path}: name one in data.target or data.files, or a folder with input.txt in "
                "data.dir."
            )
        refuse_json(path)
        paths = [path]
    return one_text(data, paths)
