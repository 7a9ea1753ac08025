"""A source: a TFDS builder prepared as ArrayRecord files, with random access and without TensorFlow."""

import dataclasses
import difflib
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import FORM, quiet, signed
from transformer.data.sources.images import decoders
from transformer.errors import UserError

SPLIT_ORDER = ("train", "validation", "test")


READ_TOGETHER = 100  # examples; each may hold an image or a recording of a megabyte


class Examples(Sequence[dict[str, Any]]):
    """The examples of one split, with random access: texts as str, other scalars as NumPy scalars, arrays unchanged.
    With `chosen`, only the records of these numbers."""

    def __init__(
        self,
        records: Any,
        texts: Mapping[str, tuple[str, ...]],
        others: Mapping[str, tuple[str, ...]],
        chosen: np.ndarray | None = None,
    ) -> None:
        self._records = records
        self._texts = texts
        self._others = others
        self._chosen: Sequence[int] | np.ndarray = range(len(records)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.many(range(*index.indices(len(self))))
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"example {position} of {len(self)}")
        return self._example(self._records[int(self._chosen[position % len(self)])])

    def many(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at `indices`, read together: about three times as fast as one by one."""
        records = self._records.__getitems__([int(self._chosen[i]) for i in indices]) if len(indices) else []
        return [self._example(record) for record in records]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), READ_TOGETHER):
            yield from self.many(range(start, min(start + READ_TOGETHER, len(self))))

    def _example(self, record: Any) -> dict[str, Any]:
        example = {name: _text(_leaf(record, path)) for name, path in self._texts.items()}
        example.update({name: _leaf(record, path) for name, path in self._others.items()})
        return example


def _leaf(record: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, path, record)


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray) else value
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


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
      values to z-scores.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    fields: tuple[str, ...]
    splits: tuple[str, ...]
    fingerprint: str
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # another name of a field -> the field
    arrays: tuple[str, ...] = ()  # array fields: images, recordings, series
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Of splits that are not stored under their own name: the stored split, and the numbers of its examples (None: all).
    parts: Mapping[str, tuple[str, np.ndarray | None]] = dataclasses.field(default_factory=dict)
    contiguous: bool = False  # one long text, read in rows of consecutive tokens by a language model

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the field `label`; empty without that field."""
        return tuple(self.facts.get("classes", ()))

    def split(self, name: str) -> Examples:
        """The examples of a split. UserError: it does not exist, or its files cannot be read without TensorFlow."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {name!r}: {choose(name, self.splits)}.")
        texts, others = field_paths(self.builder)
        stored, chosen = self.parts.get(name, (name, None))
        try:
            with quiet():
                pixels = decoders(self.name, self.builder)
                records = self.builder.as_data_source(split=stored, decoders=pixels)
        except NotImplementedError as error:
            raise UserError(
                f"{self.name} in {self.builder.data_dir} is not stored as ArrayRecord: prepare it again with "
                'download_and_prepare(file_format="array_record").'
            ) from error
        return Examples(records, texts, others, chosen)

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
    it in another form. (Those covered no names of classes, and of TFDS datasets at first a hundred examples a
    split.)"""
    return old.startswith(FORM) or not new.startswith(FORM)


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


# --- From a builder


def field_paths(builder: tfds.core.DatasetBuilder) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Paths of the text fields, and of the other scalars and arrays, by the shortest unique name."""
    texts: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []

    def walk(feature: Any, path: tuple[str, ...]) -> None:
        if isinstance(feature, tfds.features.FeaturesDict):  # Translation is one
            for name in feature:
                walk(feature[name], (*path, name))
        elif path and isinstance(feature, tfds.features.Tensor) and feature.shape == ():
            is_text = isinstance(feature, tfds.features.Text) or tfds.core.utils.dtype_utils.is_string(feature.np_dtype)
            (texts if is_text else others).append(path)
        elif path and _is_array(feature):
            others.append(path)

    walk(builder.info.features, ())
    leaves = [path[-1] for path in texts + others]
    named = {path: path[-1] if leaves.count(path[-1]) == 1 else "/".join(path) for path in texts + others}
    return {named[path]: path for path in texts}, {named[path]: path for path in others}


def features_of(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """Name of a field -> its feature."""
    texts, others = field_paths(builder)
    return {name: _leaf(builder.info.features, path) for name, path in (texts | others).items()}


def _is_array(feature: Any) -> bool:
    numbers = type(feature) is tfds.features.Tensor and not tfds.core.utils.dtype_utils.is_string(feature.np_dtype)
    return isinstance(feature, tfds.features.Image) or (numbers and feature.shape != ())


def from_builder(
    name: str,
    builder: tfds.core.DatasetBuilder,
    fingerprint: str,
    facts: Mapping[str, Any] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Source:
    """The source of a prepared builder. UserError: it has neither a text nor an array field."""
    texts, others = field_paths(builder)
    arrays = [field for field, path in others.items() if _is_array(_leaf(builder.info.features, path))]
    if not texts and not arrays:
        raise UserError(f"{name} has no text field and no array: choose a dataset of texts, images or recordings.")
    splits = [split for split, info in builder.info.splits.items() if info.num_examples]
    classes = getattr(dict(builder.info.features).get("label"), "names", None)
    facts = ({"classes": list(classes)} if classes else {}) | dict(facts or {})
    return Source(name, builder, tuple(texts), ordered(splits), fingerprint, aliases or {}, tuple(arrays), facts)


def ordered(splits: Iterable[str]) -> tuple[str, ...]:
    """Names of splits, each once, in the order of SPLIT_ORDER, then all others."""
    names = list(dict.fromkeys(splits))
    return tuple([s for s in SPLIT_ORDER if s in names] + [s for s in names if s not in SPLIT_ORDER])
