"""A table that is read once, and prepared as a store: rows are checked, split and numbered, and classes found."""

import array
import dataclasses
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from transformer.config import DataConfig
from transformer.data import store as store_module
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sources import files as files_module
from transformer.data.sources import source as source_module
from transformer.data.sources.source import SPLIT_ORDER, Source, ordered
from transformer.data.sources.stored import from_store
from transformer.data.sources.table import splits as splits_module
from transformer.data.sources.table.splits import BY_FILES, KEPT, Rule, cut
from transformer.data.store import INTEGER, TEXT, Store, StoreWriter
from transformer.errors import UserError

logger = logging.getLogger(__name__)

LABEL = "label"
UNLABELLED = -1  # of splits such as `unsupervised`, which are refused where labels are read
FEW = 1_000  # rows, of which a hash may leave a split without any
MOST_CLASSES = 0.5  # of the rows of train may have classes of their own; with more, the column is no class


class Rows(NamedTuple):
    """Some rows of a part: the number of each, and the values of each field."""

    numbers: Sequence[int]
    values: Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Part:
    """What is read from one file, or from several whose n-th rows belong together."""

    paths: tuple[Path, ...]
    read: Callable[[Callable[[int], Any]], Iterator[Rows]]  # is told the bytes that were read
    unit: str = "line"  # what the numbers of its rows count
    split: str = ""  # where the rule is by files
    member: int = 0  # of a mixture
    title: str = ""  # what sentences call it; "" = its paths

    @property
    def name(self) -> str:
        return self.title or " and ".join(map(str, self.paths))


@dataclasses.dataclass(frozen=True)
class Table:
    """A dataset of rows: its parts in order, the fields of an example, and how it is split."""

    name: str
    parts: tuple[Part, ...]
    texts: tuple[str, ...]  # text fields; a row in which one is empty is left out, except for references
    labelled: bool = False
    rule: Rule = BY_FILES
    described: Any = None  # what else the rows depend on, as JSON: columns, settings
    code: tuple[Any, ...] = ()  # the modules that read it
    class_names: Callable[[list[Any]], Sequence[str]] | None = None  # names of the sorted labels
    known_classes: tuple[str, ...] = ()  # names of the classes 0, 1, ..., where the files say them
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the members of a mixture
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def prepare(self, data: DataConfig) -> Source:
        """The source of this table, prepared if necessary in constant memory. As long as no file changes in size or
        time, it is not read again. UserErrors: a value is not what its column should hold, a class is in another split
        and not in train, a split has no row."""
        stats = [(str(path), path.stat()) for part in self.parts for path in part.paths]
        files = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]
        places = [(part.split, part.member, len(part.paths)) for part in self.parts]
        inputs = [files, places, self.texts, self.labelled, self.rule, self.described, self.known_classes]
        code = (store_module, files_module, source_module, splits_module, sys.modules[__name__], *self.code)
        key = Key(cache_root(data) / "prepared" / self.name, inputs, code, ("pyarrow",))
        return self.opened(Store(cached(key, lambda folder: Preparation(self, folder).run())))

    def opened(self, store: Store) -> Source:
        source = from_store(self.name, store, aliases=self.aliases)
        return dataclasses.replace(source, mix=dict(self.weights)) if self.weights else source


class Preparation:
    """One reading of a table into the store in `folder`."""

    def __init__(self, table: Table, folder: Path) -> None:
        self._table = table
        self._keeps = table.rule.kind == "files" and not any(part.split == "validation" for part in table.parts)
        said = [*(part.split for part in table.parts), *(["validation"] if self._keeps else [])]
        self._splits = ordered(said) if table.rule.kind == "files" else table.rule.splits
        self._hash = Rule("hash", (100 - KEPT, KEPT)) if self._keeps else table.rule
        self._ranked: dict[str, str] = {}  # the splits of a few texts
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        table, folder = self._table, self._folder
        columns = dict.fromkeys(table.texts, TEXT) | ({LABEL: INTEGER} if table.labelled else {})
        self._writer = StoreWriter(folder, columns, self._splits)
        self._classes: dict[Any, int] = {}  # label -> its number in the order in which they are found
        self._labels = {split: array.array("i") for split in self._splits}
        self._first: dict[tuple[str, Any], str] = {}  # (split, label) -> where it is first

    def run(self) -> None:
        table = self._table
        self._counts = table.rule.counts(self._total()) if table.rule.kind == "percent" else table.rule.shares
        self._read_all()
        total = sum(self._writer.counts.values())
        if (table.rule.kind == "hash" or self._keeps) and not all(self._writer.counts.values()) and total < FEW:
            texts = [text for part in table.parts for rows in self._hashed_rows(part) for text in rows]
            if len(set(texts)) >= 2 * len(self._hash.splits):
                logger.warning(
                    "%s has only %d texts: those with the lowest hashes are held out", table.name, len(texts)
                )
                self._ranked = self._hash.ranked(texts)
                self._writer.abandon()
                self._begin()
                self._read_all()
        facts = self._write_labels() if table.labelled else {}
        self._check_counts()
        if table.rule.kind == "counts" and (unused := self._row - int(sum(table.rule.shares))):
            logger.warning("%s: the last %d of %d rows are not used: see data.split", table.name, unused, self._row)
        self._writer.close(facts=facts, names=facts)

    def _hashed_rows(self, part: Part) -> Iterator[Sequence[str]]:
        """The texts by whose hash rows are split."""
        if not self._keeps or part.split == "train":
            yield from (self._kept(rows).values[self._table.texts[0]] for rows in part.read(lambda count: None))

    def _read_all(self) -> None:
        table = self._table
        self._row = 0
        with self._progress(f"reading {table.name}") as bar:
            for number, part in enumerate(table.parts):
                self._read(part, bar.update)
                following = table.parts[number + 1 : number + 2]
                if table.weights and (not following or following[0].member != part.member):
                    self._writer.end_member()

    def _progress(self, said: str) -> "tqdm[Any]":
        total = sum(path.stat().st_size for part in self._table.parts for path in part.paths)
        return tqdm(total=total, desc=said, unit="B", unit_scale=True, disable=None, leave=False)

    def _total(self) -> int:
        """The number of rows, for splits in percent: all files are read once more for it."""
        with self._progress(f"counting the rows of {self._table.name}") as bar:
            kept = (self._kept(rows) for part in self._table.parts for rows in part.read(bar.update))
            return sum(len(rows.numbers) for rows in kept)

    def _kept(self, rows: Rows) -> Rows:
        """The rows without those whose texts are empty."""
        needed = [rows.values[name] for name in self._table.texts if name != "references"]
        whole = [all(texts) for texts in zip(*needed, strict=True)]
        if all(whole):
            return rows
        values = {name: [v for v, keep in zip(own, whole, strict=True) if keep] for name, own in rows.values.items()}
        return Rows([n for n, keep in zip(rows.numbers, whole, strict=True) if keep], values)

    def _read(self, part: Part, told: Callable[[int], Any]) -> None:
        dropped, first, read = 0, 0, 0
        for rows in part.read(told):
            kept = self._kept(rows)
            read += len(rows.numbers)
            if len(kept.numbers) < len(rows.numbers):
                left = set(rows.numbers).difference(kept.numbers)
                first = first or min(left)
                dropped += len(left)
            for split, start, stop in self._placed(kept, part):
                self._add(split, part, kept, start, stop)
            self._row += len(kept.numbers)
        if dropped == read:
            raise UserError(f"{part.name} has {read} rows, and none with a text: give a file that has some.")
        if dropped:
            what = "a text" if len(self._table.texts) == 1 else "one side"
            told_of = f"{what} is empty, first in {part.unit} {first}"
            logger.warning("%d examples of %s are left out: %s", dropped, part.name, told_of)

    def _placed(self, rows: Rows, part: Part) -> Iterator[tuple[str, Any, Any]]:
        """The split of these rows: (split, start, stop), or with a hash (split, numbers of rows, None)."""
        rule, count = self._table.rule, len(rows.numbers)
        if rule.kind in ("percent", "counts"):
            yield from cut([int(size) for size in self._counts], self._row, count)
        elif rule.kind == "files" and not (self._keeps and part.split == "train"):
            yield part.split, 0, count
        else:
            splits = [self._split_of(text) for text in rows.values[self._table.texts[0]]]
            for split in dict.fromkeys(splits):
                yield split, [number for number, own in enumerate(splits) if own == split], None

    def _split_of(self, text: str) -> str:
        return (
            self._ranked.get(unicodedata.normalize("NFC", text), "train") if self._ranked else self._hash.hashed(text)
        )

    def _add(self, split: str, part: Part, rows: Rows, start: Any, stop: Any) -> None:
        def chosen(values: Sequence[Any]) -> Sequence[Any]:
            return values[start:stop] if stop is not None else [values[number] for number in start]

        self._writer.add(split, {name: chosen(rows.values[name]) for name in self._table.texts})
        if not self._table.labelled:
            return
        labels = chosen(rows.values[LABEL])
        for label in set(labels):
            if (split, label) not in self._first:
                number = chosen(rows.numbers)[labels.index(label)]
                self._first[split, label] = f"{part.name} has the class {str(label)!r} in {part.unit} {number}"
        self._labels[split].extend([self._classes.setdefault(label, len(self._classes)) for label in labels])

    def _write_labels(self) -> dict[str, Any]:
        """Writes the index of the class of each row, and returns the facts: names of classes, and label -> index."""
        trained = {label for split, label in self._first if split == "train"}
        rows = len(self._labels["train"])
        if len(trained) > max(20, MOST_CLASSES * rows):
            raise UserError(
                f"{self._table.parts[0].name} has {len(trained)} classes in {rows} rows of train: name the column of "
                "the class in data.columns.label."
            )
        for (_, label), where in self._first.items():
            if label not in trained and not self._table.known_classes:
                raise UserError(f"{where}, of which train has no example: add some, or take it out.")
        labels, names = self._named(trained)
        index = {label: number for number, label in enumerate(labels)}
        order = np.array([index.get(label, UNLABELLED) for label in self._classes], np.int64)
        for split, numbers in self._labels.items():
            found = np.frombuffer(numbers, np.int32) if numbers else np.zeros(0, np.int32)
            self._writer.add(split, {LABEL: order[found]})
        return {"classes": names, "labels": {str(label): number for label, number in index.items()}}

    def _named(self, trained: set[Any]) -> tuple[list[Any], list[str]]:
        """The labels in order, and the names of their classes. UserErrors: labels of several types, or that differ in
        case only, or numbers without a name."""
        table = self._table
        if table.known_classes:
            for (split, label), where in self._first.items():
                if label == UNLABELLED and split not in SPLIT_ORDER:
                    continue
                if not isinstance(label, int) or not 0 <= label < len(table.known_classes):
                    raise UserError(f"{where}, which is none of its {len(table.known_classes)} classes: correct it.")
            return list(range(len(table.known_classes))), list(table.known_classes)
        kinds = {type(label) for label in trained}
        if len(kinds) > 1:
            text = next(where for (_, label), where in self._first.items() if isinstance(label, str))
            raise UserError(f"{text}, and numbers elsewhere in that column: write all classes in one form.")
        spelled: dict[str, str] = {}
        for label in map(str, trained):
            other = spelled.setdefault(unicodedata.normalize("NFC", label).casefold(), label)
            if other != label:
                both = " and ".join(map(repr, sorted((other, label))))
                raise UserError(f"{table.parts[0].name} has the classes {both}, which are alike: write one of them.")
        texts = [str(label) for label in trained]
        whole = all(text.isascii() and text.removeprefix("-").isdecimal() for text in texts)
        labels = sorted(trained, key=lambda label: (int(label) if whole else 0, str(label)))
        names = table.class_names(labels) if table.class_names else [str(label) for label in labels]
        if len(labels) < 2:
            raise UserError(f"{table.parts[0].name} has one class only, {names[0]!r}: give examples of another.")
        return labels, list(names)

    def _check_counts(self) -> None:
        """UserErrors: a split that the rule makes has no row."""
        counts, rule = self._writer.counts, self._table.rule
        empty = [split for split in self._splits if not counts[split]]
        if empty:
            parts = [part for part in self._table.parts if part.split == empty[0]] or self._table.parts
            total = sum(counts.values())
            found = f"no example in {empty[0]}" if rule.kind == "files" else f"{total} examples in all"
            raise UserError(f"{parts[0].name} give {found}, too few for {', '.join(self._splits)}: add some.")
        if rule.kind == "counts" and sum(counts.values()) < sum(rule.shares):
            raise UserError(
                f"{self._table.parts[0].name} has {sum(counts.values())} rows, fewer than the {sum(rule.shares):.0f} "
                "of data.split: lower them."
            )
