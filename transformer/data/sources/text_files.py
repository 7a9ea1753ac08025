"""Text files with their own formats: labelled lines, abstracts with summaries, one long text."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer.config import DataConfig
from transformer.data.builder import Dataset, of_texts
from transformer.data.sources.files import lines_of, opened
from transformer.errors import UserError

FILES = {"train": "train", "validation": "dev", "test": "test"}
SST2_CLASSES = {"0": "negative", "1": "positive"}


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
    a label of the files to the index of its class.
    """
    read: dict[str, list[tuple[str, str]]] = {}
    for split, path in _paths(data, ".tsv").items():
        read[split] = [_labelled(path, number, line) for number, line in enumerate(lines_of(path), start=1) if line]
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


def _labelled(path: Path, number: int, line: str) -> tuple[str, str]:
    text, tab, label = line.rpartition("\t")
    if not tab or not text.strip():
        raise UserError(f"{path} has no text and label in line {number}: write the text, a tab and the label.")
    return text.strip(), label


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
        abstract = _one_line(" ".join(row["source"]))
        references = [_one_line(reference) for reference in row["target"]]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON in line {number} ({error.msg}): fetch it again.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} has no lists of text 'source' and 'target' in line {number}: fetch it again."
        ) from error
    if not abstract or not references or not all(references):
        raise UserError(f"{path} has no abstract or an empty summary in line {number}: take that line out.")
    return {"abstract": abstract, "summary": references[0], "references": "\n".join(references)}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def text(data: DataConfig) -> Dataset:
    """One text file as one document: the file `data.target`, or input.txt in `data.dir`. Field: text.

    The first 90 % of its characters are `train` and the last 10 % `validation`, as nanoGPT splits tinyshakespeare.
    There is no third part: `test` is the same as `validation`, so nothing may be selected on it.
    """
    path = (Path(data.dir) / "input.txt" if data.dir else Path(data.target)).expanduser()
    if not path.is_file():
        raise UserError(
            f"There is no text file {path}: name one in data.target, or a folder with input.txt in data.dir."
        )
    try:
        with opened(path) as stream:
            whole = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid UTF-8 at byte {error.start}: convert it, for example with iconv."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): check it and its permissions.") from error
    if len(whole) < 20:
        raise UserError(f"{path} has only {len(whole)} characters: give a longer text.")
    cut = int(len(whole) * 0.9)
    parts = {"train": whole[:cut], "validation": whole[cut:], "test": whole[cut:]}
    rows = {split: [{"text": part}] for split, part in parts.items()}
    return _texts(data, ("text",), rows, aliases={data.target: "text"})
