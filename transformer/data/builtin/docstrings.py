"""The docstrings of the installed scientific stack: English text for language models, without download.

Every docstring of at least `MIN_CHARACTERS` in the source files of JAX, NumPy, SciPy, Flax, Optax and Python's standard
library: about 11 million characters. Files are parsed, never imported, and test folders are skipped.

The splits are whole packages, because docstrings of one package resemble each other: JAX, NumPy, SciPy and Python are
training, Flax is validation and Optax test. Packages copy from each other, so exact repetitions count once, and a
docstring is dropped when it shares a line of at least `LONG_LINE` characters with an earlier split (training,
validation, test).

The installed versions (`versions()`) determine the corpus; `Corpus.fingerprint` is a digest of its text. Figures are
comparable only within one fingerprint.
"""

import ast
import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import platform
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from transformer.data.builder import Dataset, at_once, digest_of_rows

logger = logging.getLogger(__name__)

PYTHON = "python"  # the standard library, as a package among the others
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("jax", "numpy", PYTHON, "scipy"),
    "validation": ("flax",),
    "test": ("optax",),
}
MIN_CHARACTERS = 40
LONG_LINE = 40
# Folders of tests or of other packages.
_SKIPPED = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclasses.dataclass(frozen=True)
class Docstring:
    """One docstring, without its indentation, and the package that it comes from."""

    text: str
    package: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The docstrings of every split, and how many of each were dropped for a long line shared with an earlier split."""

    splits: dict[str, tuple[Docstring, ...]]
    dropped: dict[str, int]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every docstring of every split, in order (hex)."""
        pairs = {split: [(row.package, row.text) for row in rows] for split, rows in self.splits.items()}
        return digest_of_rows({split: functools.partial(iter, rows) for split, rows in pairs.items()})


def root(package: str) -> Path:
    """The folder that holds a package's source files, found without importing it."""
    if package == PYTHON:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    assert locations  # `versions` has found the package installed
    return Path(locations[0])


def docstrings_of(folder: Path) -> Iterator[str]:
    """The docstrings of all modules, classes and functions under a folder, files in the order of their paths."""
    for file in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        if not _SKIPPED.intersection(file.relative_to(folder).parts):
            yield from _docstrings_in(file)


def _docstrings_in(file: Path) -> Iterator[str]:
    if file.name.startswith("test_") or file.name.endswith("_test.py"):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates and examples of broken code
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)  # cleaned of its indentation
            # A lone surrogate, written as an escape, has no UTF-8.
            if text and len(text) >= MIN_CHARACTERS and text == text.encode(errors="ignore").decode():
                yield text


def long_lines(text: str) -> set[str]:
    """The lines of at least `LONG_LINE` characters, with white space and accents (NFC) normalised."""
    lines = unicodedata.normalize("NFC", text).splitlines()
    return {line for line in (" ".join(line.split()) for line in lines) if len(line) >= LONG_LINE}


def collect(folders: Mapping[str, Mapping[str, Path]]) -> Corpus:
    """The corpus of `folders`: for every split, in order, the folders of its packages. A docstring belongs to the first
    split and package that has it; a later split loses those that share a long line with an earlier one."""
    seen: set[str] = set()
    seen_lines: set[str] = set()
    splits: dict[str, tuple[Docstring, ...]] = {}
    dropped: dict[str, int] = {}
    for split, packages in folders.items():
        unique: list[Docstring] = []
        for package, folder in packages.items():
            for text in docstrings_of(folder):
                key = unicodedata.normalize("NFC", text)
                if key not in seen:
                    seen.add(key)
                    unique.append(Docstring(text, package))
        kept = tuple(row for row in unique if seen_lines.isdisjoint(long_lines(row.text)))
        splits[split], dropped[split] = kept, len(unique) - len(kept)
        for row in kept:
            seen_lines |= long_lines(row.text)
    return Corpus(splits, dropped)


@functools.cache
def corpus() -> Corpus:
    """The corpus of the installed packages (about ten seconds, once per process)."""
    made = collect({split: {package: root(package) for package in packages} for split, packages in SPLITS.items()})
    logger.info("docstrings dropped, as they share a long line with an earlier split: %s", made.dropped)
    return made


def versions() -> dict[str, str]:
    """The installed packages that the text comes from."""
    packages = sorted(package for packages in SPLITS.values() for package in packages)
    return {p: platform.python_version() if p == PYTHON else importlib.metadata.version(p) for p in packages}


def dataset() -> Dataset:
    """Fields: text and package."""

    def rows() -> dict[str, list[dict[str, str]]]:
        return {split: [dataclasses.asdict(row) for row in found] for split, found in corpus().splits.items()}

    features = {"text": tfds.features.Text(), "package": tfds.features.Text()}
    made, code = at_once(SPLITS, rows), (sys.modules[__name__],)
    return Dataset("docstrings", features, made, lambda: corpus().fingerprint, code, versions(), shuffled=True)
