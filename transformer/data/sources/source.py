"""A source: prepared examples with random access, whatever they are stored as."""

import dataclasses
import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from transformer.config import DataConfig
from transformer.data.builder import signed
from transformer.data.store import Texts
from transformer.errors import UserError

SPLIT_ORDER = ("train", "validation", "test")


READ_TOGETHER = 100  # examples; each may hold an image or a recording of a megabyte


class Records(Protocol):
    """The stored examples of a split. `members`: where each member of a mixture ends. `mapped`: whether they are in
    memory-mapped files, so that reading them anew costs little."""

    @property
    def members(self) -> Sequence[int]: ...

    @property
    def mapped(self) -> bool: ...

    def __len__(self) -> int: ...

    def many(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The examples of these numbers, read together."""
        ...

    def texts(self, name: str) -> Texts | None:
        """The memory-mapped column of a text field; None where there is none."""
        ...

    def numbers(self, name: str) -> np.ndarray | None:
        """The memory-mapped column of a field of numbers; None where there is none."""
        ...


class Examples(Sequence[dict[str, Any]]):
    """The examples of one split, with random access: texts as str, other scalars as NumPy scalars, arrays unchanged.
    With `chosen`, only the records of these numbers."""

    def __init__(self, records: Records, chosen: np.ndarray | None = None) -> None:
        self._records = records
        self._whole = chosen is None
        self._chosen: Sequence[int] | np.ndarray = range(len(records)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.many(range(*index.indices(len(self))))
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"example {position} of {len(self)}")
        return self.many([position % len(self)])[0]

    def many(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`, read together: about three times as fast as one by one."""
        return self._records.many([int(self._chosen[i]) for i in indices])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), READ_TOGETHER):
            yield from self.many(range(start, min(start + READ_TOGETHER, len(self))))

    @property
    def mapped(self) -> bool:
        """Whether they are read from memory-mapped files, without decoding."""
        return self._records.mapped

    def texts(self, name: str) -> Texts | None:
        """The texts of a field as one memory-mapped column, in the order of the examples; None where they are not
        stored so."""
        return self._records.texts(name) if self._whole else None

    def numbers(self, name: str) -> np.ndarray | None:
        """A field of numbers as one memory-mapped column, in the order of the examples; None where they are not stored
        so."""
        return self._records.numbers(name) if self._whole else None

    @property
    def members(self) -> Sequence[int]:
        """Where each member of a mixture ends, in numbers of examples; empty where there is no mixture."""
        return self._records.members if self._whole else ()


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared dataset.

    `fingerprint` is a digest of every example of every split in order, with labels, arrays and the names of classes:
    equal digests mean equal data. Different ones mean different data only where they are `comparable`. `facts` is what
    a run needs to know of its training data besides the vocabulary, as plain JSON (floats are restored exactly):

    * with a field `label`: `classes`, the names of the classes in the order of their indices;
    * of files with their own labels (sst2): `labels`, label -> index of the class;
    * 8-bit images: `mean` and `deviation` of each channel of pixels / 255, of the training split;
    * series: the names of the `columns`, and the `mean` and `deviation` of each in the training split, which scaled the
      values to z-scores; with dates the name of their column, `time`, the `frequency` and the steps of its `season`.
    """

    name: str
    read: Callable[[str], Records]  # returns the records of a stored split
    fields: tuple[str, ...]
    splits: tuple[str, ...]
    fingerprint: str
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # another name of a field -> the field
    arrays: tuple[str, ...] = ()  # array fields: images, recordings, series
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Of splits that are not stored under their own name: the stored split, and the numbers of its examples (None: all).
    parts: Mapping[str, tuple[str, np.ndarray | None]] = dataclasses.field(default_factory=dict)
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict)  # member of a mixture -> its weight
    contiguous: bool = False  # one long text, read in rows of consecutive tokens by a language model

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the field `label`; empty without that field."""
        return tuple(self.facts.get("classes", ()))

    def split(self, name: str) -> Examples:
        """The examples of a split. UserError: it does not exist, or its files cannot be read without TensorFlow."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {name!r}: {choose(name, self.splits)}.")
        stored, chosen = self.parts.get(name, (name, None))
        return Examples(self.read(stored), chosen)

    def validating(self, split: str) -> "Source":
        """The source with another split, `data.validation`, in the place of `validation`; "" leaves it as it is.
        UserError: there is no such split."""
        if split in ("", "validation"):
            return self
        if split not in self.splits:
            raise UserError(f"{self.name} has no split data.validation={split!r}: {choose(split, self.splits)}.")
        parts = {**self.parts, "validation": self.parts.get(split, (split, None))}
        signature = signed(self.fingerprint, {"validation": split})
        return dataclasses.replace(
            self, splits=ordered([*self.splits, "validation"]), parts=parts, fingerprint=signature
        )

    def field(self, name: str) -> str:
        """The text field that `name` means. UserError: there is none."""
        name = self.aliases.get(name, name)
        if name not in self.fields:
            raise UserError(f"{self.name} has no text field {name!r}: {choose(name, self.fields)}.")
        return name

    def array(self, name: str) -> str:
        """The array field `name`. UserError: there is none."""
        if name not in self.arrays:
            others = f"its arrays are {', '.join(self.arrays)}" if self.arrays else "it holds no arrays"
            raise UserError(f"{self.name} has no field {name!r} of arrays ({others}): choose another data.name.")
        return name

    def pair(self, data: DataConfig) -> tuple[str, str]:
        """The source and target fields. UserError: one does not exist, or both are the same."""
        source, target = self.field(data.source), self.field(data.target)
        if source == target:
            raise UserError(f"data.source and data.target are both {data.source!r}: name two fields.")
        return source, target

    def chosen_fields(self, data: DataConfig) -> tuple[str, ...]:
        """The fields of the config: source and target, or the target alone if `data.source` is no field."""
        target = self.field(data.target)
        source = self.aliases.get(data.source, data.source)
        return (source, target) if source in self.fields and source != target else (target,)


def comparable(old: str, new: str) -> bool:
    """Whether different fingerprints mean different data, `old` being a stored one: not where an older version computed
    it in another form, of a lower number. (The first, without a number, covered no names of classes, and of TFDS
    datasets at first a hundred examples a split; the second, the rows of text files one by one.)"""
    return _form(old) >= _form(new)


def _form(fingerprint: str) -> int:
    number, colon, _ = fingerprint.partition(":")
    return int(number) if colon and number.isdecimal() else 1


def check_classes(source: Source, split: str, labels: np.ndarray, trained: np.ndarray) -> None:
    """UserErrors: `labels`, of a split, hold a number that is no class, or a class that is not in `trained`, the labels
    of the split `train`."""
    if labels.min(initial=0) < 0:  # -1 stands for no label, as in the test split of GLUE
        raise UserError(
            f"The split {split!r} of {source.name} has examples without a label ({labels.min()}): choose another split."
        )
    unseen = np.setdiff1d(labels, trained)
    if len(unseen):
        names = ", ".join(repr(source.classes[i]) if i < len(source.classes) else str(i) for i in unseen.tolist())
        raise UserError(
            f"The split {split!r} of {source.name} has the class {names}, of which train has no example: add some to "
            "train, or take it out."
        )


def choose(wrong: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest of `names`, and all of them."""
    names = list(names)
    near = difflib.get_close_matches(wrong, names, n=1)
    listed = ", ".join(names)
    return f"did you mean {near[0]!r} (of {listed})" if near else f"choose one of {listed}"


def ordered(splits: Iterable[str]) -> tuple[str, ...]:
    """Names of splits, each once, in the order of SPLIT_ORDER, then all others."""
    names = list(dict.fromkeys(splits))
    return tuple([s for s in SPLIT_ORDER if s in names] + [s for s in names if s not in SPLIT_ORDER])
