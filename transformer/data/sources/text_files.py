"""Text files with their own formats: labelled lines, abstracts with summaries, one long text."""

import functools
import json
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer.config import DataConfig
from transformer.data.builder import Dataset, of_texts
from transformer.data.sources.files import is_json, lines_of, read_text, refuse_json
from transformer.errors import UserError

logger = logging.getLogger(__name__)

FILES = {"train": "train", "validation": "dev", "test": "test"}
SST2_CLASSES = {"0": "negative", "1": "positive"}
HEADERS = {"label", "labels", "class", "classes", "category", "sentiment", "polarity", "target"}  # names of a column


def _texts(
    data: DataConfig, fields: Sequence[str], rows: Mapping[str, Sequence[Mapping[str, Any]]], **options: Any
) -> Dataset:
    return of_texts(data.name, fields, {split: functools.partial(iter, rows[split]) for split in rows}, **options)


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


def sst2(data: DataConfig) -> Dataset:
    """The Stanford Sentiment Treebank with two classes (Socher et al., 2013): each line is a sentence, a tab and 0 or
    1.

    Fields: text, label. Other labels also work: the classes are the sorted labels of train.tsv. The fact `labels` maps
    a label of the files to the index of its class. A first line that names its columns (`HEADERS`) is left out.
    """
    read: dict[str, list[tuple[str, str]]] = {}
    for split, path in _paths(data, ".tsv").items():
        read[split] = _labelled_lines(path)
        unseen = {label for _, label in read[split]} - {label for _, label in read["train"]}
        if unseen:
            raise UserError(
                f"{path} has the class {min(unseen)!r}, of which train.tsv has no example: add some, or take it out."
            )
    labels = sorted({label for _, label in read["train"]})
    splits = {
        split: [{"text": text, "label": labels.index(label)} for text, label in rows] for split, rows in read.items()
    }
    classes = [SST2_CLASSES.get(label, label) for label in labels]
    facts = {"labels": {label: number for number, label in enumerate(labels)}}
    return _texts(data, ("text",), splits, classes=classes, facts=facts)


def _labelled_lines(path: Path) -> list[tuple[str, str]]:
    """Texts and labels of a file, without its header. UserErrors: a line without one of them, more than two columns
    under a header, labels before the texts, labels that differ in case only, no line at all."""
    rows = [_labelled(path, number, line) for number, line in enumerate(lines_of(path), start=1) if line]
    labels = [label for _, label in rows]
    if rows and labels[0].casefold() in HEADERS and labels.count(labels[0]) == 1:
        if "\t" in rows[0][0]:
            columns = ", ".join([*rows[0][0].split("\t"), labels[0]])
            raise UserError(f"{path} has the columns {columns}: keep two of them, the text and the label.")
        logger.warning("line 1 of %s is left out: it names the columns", path)
        rows, labels = rows[1:], labels[1:]
    if not rows:
        raise UserError(f"{path} has no text and label: write the text, a tab and the label.")
    if len(set(labels)) > len({text for text, _ in rows}):
        raise UserError(f"{path} has more labels than texts: write the text first, then a tab and the label.")
    tabs = {text.count("\t") for text, _ in rows}
    if len(rows) > 1 and len(tabs) == 1 and min(tabs):
        logger.warning("%s has %d columns, and all but the last are read as the text", path, min(tabs) + 2)
    spelled: dict[str, str] = {}
    for label in labels:
        other = spelled.setdefault(unicodedata.normalize("NFC", label).casefold(), label)
        if other != label:
            raise UserError(f"{path} has the classes {other!r} and {label!r}, which are alike: write one of them.")
    return rows


def _labelled(path: Path, number: int, line: str) -> tuple[str, str]:
    text, tab, label = line.rpartition("\t")
    if not tab or not text.strip():
        raise UserError(f"{path} has no text and label in line {number}: write the text, a tab and the label.")
    return text.strip(), label.strip()


def scitldr(data: DataConfig) -> Dataset:
    """SciTLDR (Cachola et al., 2020): abstracts of papers and one-sentence summaries, in JSON lines. Fields: abstract,
    summary (the first reference) and references (all of them, one per line), for evaluation."""
    splits = {
        split: [_abstract(path, number, line) for number, line in enumerate(lines_of(path), start=1) if line]
        for split, path in _paths(data, ".jsonl").items()
    }
    return _texts(data, ("abstract", "summary", "references"), splits)


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


def text(data: DataConfig) -> Dataset:
    """One text file as one document: the file `data.target`, or input.txt in `data.dir`. Field: text.

    Its lines end with line feeds, whatever they end with in the file, as in Python's text mode. The first 90 % of its
    characters are `train` and the last 10 % `validation`, as nanoGPT splits tinyshakespeare. There is no third part:
    `test` is the same as `validation`, so nothing may be selected on it.
    """
    path = (Path(data.dir) / "input.txt" if data.dir else Path(data.target)).expanduser()
    if not path.is_file():
        raise UserError(
            f"There is no text file {path}: name one in data.target, or a folder with input.txt in data.dir."
        )
    refuse_json(path)
    whole = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if is_json(whole.partition("\n")[0]):
        logger.warning("%s begins with a JSON object, and is read as it stands", path)
    if len(whole) < 20:
        raise UserError(f"{path} has only {len(whole)} characters: give a longer text.")
    cut = int(len(whole) * 0.9)
    parts = {"train": whole[:cut], "validation": whole[cut:], "test": whole[cut:]}
    rows = {split: [{"text": part}] for split, part in parts.items()}
    return _texts(data, ("text",), rows, aliases={data.target: "text"})
