"""Sources that TFDS stores: a builder prepared as ArrayRecord files, read without TensorFlow."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer.data.builder import quiet
from transformer.data.sources.images import decoders
from transformer.data.sources.source import Source, ordered
from transformer.errors import UserError


class BuiltRecords:
    """The examples of a split of a builder. UserError: its files cannot be read without TensorFlow."""

    members = ()
    mapped = False

    def __init__(self, name: str, builder: tfds.core.DatasetBuilder, split: str) -> None:
        self._texts, self._others = field_paths(builder)
        try:
            with quiet():
                self._records = builder.as_data_source(split=split, decoders=decoders(name, builder))
        except NotImplementedError as error:
            raise UserError(
                f"{name} in {builder.data_dir} is not stored as ArrayRecord: prepare it again with "
                'download_and_prepare(file_format="array_record").'
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def many(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The examples of these numbers."""
        return [self._example(record) for record in self._records.__getitems__(numbers)] if numbers else []

    def texts(self, name: str) -> None:
        """Its texts are stored with the other fields of an example."""

    def numbers(self, name: str) -> None:
        """So are its numbers."""

    def _example(self, record: Any) -> dict[str, Any]:
        example = {name: _text(_leaf(record, path)) for name, path in self._texts.items()}
        example.update({name: _leaf(record, path) for name, path in self._others.items()})
        return example


def _leaf(record: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, path, record)


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray) else value
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


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
    read = functools.partial(BuiltRecords, name, builder)
    return Source(name, read, tuple(texts), ordered(splits), fingerprint, aliases or {}, tuple(arrays), facts)
