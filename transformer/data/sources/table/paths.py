"""Which files `data.files` and `data.mix` name: files, folders, globs, and folders of Hugging Face `datasets`."""

import glob
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transformer.data.sources.files import ENDINGS
from transformer.data.sources.source import SPLIT_ORDER
from transformer.errors import UserError

# Ending of a file, before that of its compression -> its form.
FORMS = {
    ".txt": "text",
    ".text": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
STEMS = {  # words in the name of a file or a folder -> the split that they mean
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


class File(NamedTuple):
    """A file that is read, and what is known of its place."""

    path: Path
    form: str  # a value of FORMS
    split: str = ""  # as its entry or its name says; "": neither does
    member: int = 0  # of a mixture


def expanded(entries: Sequence[str], folder: str, key: str) -> list[File]:
    """The files that these entries name, those of an entry in the order of their names; relative ones are in `folder`.
    UserErrors: an entry names no file, a file has no ending that says its form, or only some entries say a split."""
    found: list[File] = []
    for entry in entries:
        split, pattern = split_and_pattern(entry)
        paths = list(_paths(Path(folder).expanduser() / Path(pattern).expanduser(), key, entry))
        found += [file._replace(split=split or file.split) for file in paths]
    if not say_splits(entries, key):
        found = _named(found)
    elif not any(file.split == "train" for file in found):
        raise UserError(f"{key} names no files of the split train: write one of its entries as train=FILE.")
    return found


def say_splits(entries: Sequence[str], key: str) -> bool:
    """Whether each entry begins with a split. UserError: only some do."""
    given = [bool(split_and_pattern(entry)[0]) for entry in entries]
    if any(given) and not all(given):
        wrong = next(entry for entry, has in zip(entries, given, strict=True) if not has)
        raise UserError(f"{key} has {wrong!r} without a split and others with one: write train={wrong}, or test=...")
    return any(given)


def split_and_pattern(entry: str) -> tuple[str, str]:
    """The split that an entry begins with, or "", and its path or glob."""
    split, equals, pattern = entry.partition("=")
    return (split, pattern) if equals and split in SPLIT_ORDER else ("", entry)


def _paths(pattern: Path, key: str, entry: str) -> Iterator[File]:
    """The files of one entry."""
    for path in matching(pattern, key, entry):
        if not path.is_dir():
            yield File(path, form_of(path))
            continue
        held = list(_in_folder(path))
        if not held:
            endings = ", ".join(FORMS)
            raise UserError(f"{key} has {entry!r}, and the folder {path} holds no file of {endings}: name others.")
        yield from held


def matching(pattern: Path, key: str, entry: str) -> list[Path]:
    """The files and folders that a path or a glob names, in the order of their names. UserError: there is none."""
    if pattern.exists():
        return [pattern]
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    if not found:
        near = _nearest_folder(pattern)
        raise UserError(f"{key} has {entry!r}, and there is no such file (looked in {near}): correct the name.")
    return found


def _nearest_folder(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _in_folder(folder: Path) -> Iterator[File]:
    """The files of a folder that have a form, of all folders in it, in the order of their paths."""
    if (folder / "dataset_dict.json").is_file():
        for split in _read_json(folder / "dataset_dict.json").get("splits", []):
            yield from (file._replace(split=STEMS.get(split, split)) for file in _saved(folder / split))
    elif (folder / "state.json").is_file():
        yield from _saved(folder)
    else:
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
            if path.is_file() and not hidden and _ending(path) in FORMS:
                yield File(path, FORMS[_ending(path)])


def _saved(folder: Path) -> Iterator[File]:
    """The Arrow files of a dataset that `datasets` saved with save_to_disk. UserErrors: one is missing, or there is no
    such dataset."""
    if not (folder / "state.json").is_file():
        raise UserError(f"{folder} holds no dataset of save_to_disk (there is no state.json): save it again.")
    for row in _read_json(folder / "state.json").get("_data_files", []):
        path = folder / str(row.get("filename"))
        if not path.is_file():
            raise UserError(f"{folder / 'state.json'} names {path.name}, which is not there: copy the whole folder.")
        yield File(path, "arrow")


def _read_json(path: Path) -> dict[str, list]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): save the dataset again.") from error


def form_of(path: Path) -> str:
    """The form that the ending of a file says. UserError: it says none."""
    if not path.is_file():
        raise UserError(f"{path} is no file: name one.")
    if _ending(path) not in FORMS:
        raise UserError(
            f"{path} has no ending that says its form: rename it to one of {', '.join(FORMS)}, perhaps with "
            f"{', '.join(ENDINGS[1:])} after it."
        )
    return FORMS[_ending(path)]


def _ending(path: Path) -> str:
    """The ending, before that of the compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in ENDINGS[1:]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _named(files: list[File]) -> list[File]:
    """The files with the splits that their names, or those of their folders, say; without, unless all of them have one,
    and one is of train."""
    said = [file.split or _said(file.path) for file in files]
    held = [file.path for file, split in zip(files, said, strict=True) if split in ("validation", "test")]
    if "train" in said and held and not all(said):
        raise UserError(
            f"{held[0]} says by its name that it is held out, and {files[said.index('')].path} says no split: write "
            "train=FILE, test=FILE and so on in data.files."
        )
    if "train" not in said or not all(said):
        return [file._replace(split="") for file in files]
    return [file._replace(split=split) for file, split in zip(files, said, strict=True)]


def _said(path: Path) -> str:
    """The split that a file's name has as a word, or that its folder is called."""
    words = {STEMS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in STEMS}
    return words.pop() if len(words) == 1 else STEMS.get(path.parent.name.lower(), "")


def mixture(entries: Sequence[str], folder: str) -> tuple[list[File], dict[str, float]]:
    """The files of `data.mix`, each with its member, and the weight of each member. UserErrors: an entry has no weight
    above 0, some files are held out by their names and others say no split; see `expanded`."""
    weights: dict[str, float] = {}
    files: list[File] = []
    for number, entry in enumerate(entries):
        pattern, _, weight = entry.rpartition("=")
        try:
            share = float(weight)
        except ValueError:
            share = 0.0
        if not pattern or not 0 < share < float("inf") or pattern in weights:
            raise UserError(
                f"data.mix has {entry!r}: write a file or a glob and its weight, each once, as books/*.txt=0.7"
            )
        weights[pattern] = share
        files += [file._replace(member=number) for file in expanded([pattern], folder, "data.mix")]
    held = next((file for file in files if file.split in ("validation", "test")), None)
    without = next((file for file in files if not file.split), None)
    if held and without:  # whatever the split, some of what is held out would be trained on
        raise UserError(
            f"data.mix has {held.path} of the split {held.split}, and {without.path}, which says no split: name files "
            "of one kind, as all members are split alike."
        )
    if without:
        files = [file._replace(split="") for file in files]
    return files, weights
