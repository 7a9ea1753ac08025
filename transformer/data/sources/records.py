"""Texts and classes as a TFDS builder: for data that is generated, or read from files of a form of its own."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow_datasets as tfds

Splits = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Records:
    """A dataset before it is prepared: its text fields, and the names of the classes of its field `label`, if any.

    `identity` is a hex digest that changes with the data, known before they are made; `make` gives the splits.
    """

    name: str
    fields: tuple[str, ...]
    identity: str
    make: Callable[[], Splits]
    classes: tuple[str, ...] = ()


def code_identity(modules: Iterable[ModuleType], versions: Mapping[str, str]) -> str:
    """The identity of what these modules generate with these versions of other libraries."""
    code = [inspect.getsource(module) for module in modules]
    return hashlib.sha256(json.dumps([code, dict(versions)], sort_keys=True).encode()).hexdigest()


def fingerprint(splits: Splits) -> str:
    """SHA-256 of every example of every split, in order (hex)."""
    rows = {split: [dict(example) for example in examples] for split, examples in splits.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def share(*key: object) -> float:
    """A number from 0 to 1 that depends on the key only: where a split is drawn by it, it never changes."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big") / 2**64


with tfds.core.registered.skip_registration():  # it takes arguments that tfds.builder(name) could not give

    class RecordDataset(tfds.core.GeneratorBasedBuilder):
        """Records as a dataset, in their own order. The data folder is `<name>/<identity>/<version>`."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # as in ParallelText: there are no checksums beside this file

        def __init__(self, records: Records, *, data_dir: Path) -> None:
            self.records = records
            self.name = records.name
            config = tfds.core.BuilderConfig(name=records.identity[:32], version=self.VERSION)
            super().__init__(data_dir=data_dir, config=config, file_format="array_record")

        def _info(self) -> tfds.core.DatasetInfo:
            features: dict[str, Any] = {field: tfds.features.Text() for field in self.records.fields}
            if self.records.classes:
                features["label"] = tfds.features.ClassLabel(names=list(self.records.classes))
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            made = self.records.make()
            self.info.metadata["fingerprint"] = fingerprint(made)
            return {split: self._generate_examples(examples) for split, examples in made.items()}

        def _generate_examples(self, examples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(dict(example) for example in examples)
