"""A dataset before it is prepared, and the TFDS builder that writes any dataset, of sources/ or builtin/, as
ArrayRecord."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sorting import in_bounded_memory
from transformer.errors import UserError

# Split -> a function that returns its examples in order. It is called more than once.
Splits = Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The name of a dataset, the features of an example, and the functions that return the examples.

    Data read from files have no `code`: `digest` reads them each time, and changed files are prepared anew. Generated
    data name the modules that generate them in `code` and everything else that affects the result in `versions`: they
    are generated anew only where one of these has changed.
    """

    name: str
    features: Mapping[str, Any]  # key of an example -> its TFDS feature
    splits: Splits
    digest: Callable[[], str]  # of every example of every split, labels and arrays included: see `digest_of_rows`
    code: Sequence[Any] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see Source.facts
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # another name of a text field -> the field
    shuffled: bool = False  # TFDS stores the examples in the order of a hash of their indices

    @functools.cached_property
    def fingerprint(self) -> str:
        """`digest()`, read once, with the names of classes and columns."""
        return signed(self.digest(), names_of(self.features, self.facts))


def of_texts(name: str, fields: Iterable[str], splits: Splits, classes: Sequence[str] = (), **options: Any) -> Dataset:
    """A dataset of text fields; with `classes`, an example also has the index of its class, `label`."""
    features: dict[str, Any] = {field: tfds.features.Text() for field in fields}
    if classes:
        features["label"] = tfds.features.ClassLabel(names=list(classes))
    return Dataset(name, features, splits, functools.partial(digest_of_rows, splits), **options)


def of_arrays(name: str, features: Mapping[str, Any], splits: Splits, **options: Any) -> Dataset:
    """A dataset with array fields: images, recordings or series."""
    return Dataset(name, features, splits, functools.partial(digest_of_arrays, name, features, splits), **options)


def at_once(names: Iterable[str], make: Callable[[], Mapping[str, Sequence[Any]]]) -> Splits:
    """Splits that `make` returns all together; it is called when the first of them is read."""
    made = functools.cache(make)
    return {name: functools.partial(lambda split: made()[split], name) for name in names}


def array_feature(shape: tuple[int | None, ...], dtype: Any) -> tfds.features.Tensor:
    """An array field, stored as bytes; the first axis may be None, for any length."""
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def share(*key: object) -> float:
    """A number from 0 to 1, a hash of the key: splits that are drawn by it never change."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big") / 2**64


# --- Digests

# The form of a digest, which its fingerprint begins with; those of other forms do not compare. Rows of texts without
# classes have the first form, which has no name.
FORM = "2:"
_json = json.JSONEncoder(sort_keys=True).encode


def digest_of_rows(splits: Mapping[str, Callable[[], Iterable[Any]]]) -> str:
    """SHA-256 (hex) of the JSON object {split: [row, ...]} with sorted keys; only one row is in memory at a time."""
    digest = hashlib.sha256(b"{")
    for number, split in enumerate(sorted(splits)):
        digest.update(f"{', ' if number else ''}{json.dumps(split)}: [".encode())
        for place, row in enumerate(splits[split]()):
            digest.update(f"{', ' if place else ''}{_json(row)}".encode())
        digest.update(b"]")
    digest.update(b"}")
    return digest.hexdigest()


def digest_of_arrays(name: str, features: Iterable[str], splits: Splits) -> str:
    """FORM and the SHA-256 (hex) of the names, and of every example of every split in order. UserError: a split is
    empty."""
    digest = hashlib.sha256(json.dumps([name, list(features)]).encode())
    for split, examples in splits.items():
        count = 0
        for example in examples():
            count += 1
            add_example(digest, example)
        if not count:
            raise UserError(f"{name} has no example for its split {split!r}: add files to data.dir.")
        digest.update(json.dumps([split, count]).encode())
    return FORM + digest.hexdigest()


def add_example(digest: Any, example: Mapping[str, Any]) -> None:
    """Adds all fields of an example to a hashlib digest: arrays and NumPy's scalars by type, shape and bytes, all else
    as JSON. What is added to a digest by this function can be told apart again, so no two examples are added alike."""
    arrays = {key: np.asarray(value) for key, value in example.items() if isinstance(value, np.ndarray | np.generic)}
    others = {key: value for key, value in example.items() if key not in arrays}
    kinds = {key: [value.dtype.str, value.shape] for key, value in arrays.items()}
    digest.update(_json([others, kinds]).encode())
    for key in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[key]).data)


def names_of(features: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What gives the numbers of the examples a meaning: the classes of each field, the labels of files, columns."""
    classes = {field: list(names) for field, feature in features.items() if (names := getattr(feature, "names", None))}
    named = {key: facts[key] for key in ("labels", "columns") if key in facts}
    return {**({"classes": classes} if classes else {}), **named}


def signed(digest: str, names: Mapping[str, Any]) -> str:
    """A digest with names: the form of the digest, or FORM, and the SHA-256 (hex) of both. Without names, the digest as
    it is."""
    form = digest[: digest.find(":") + 1] or FORM
    return form + hashlib.sha256(_json([digest, names]).encode()).hexdigest() if names else digest


# --- TFDS


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TFDS without progress bars, log lines and prints; all settings are restored afterwards."""
    verbosity = absl.logging.get_verbosity()
    progress = tfds.core.utils.tqdm_utils._active
    absl.logging.set_verbosity(absl.logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        tfds.display_progress_bar(progress)


with tfds.core.registered.skip_registration():  # tfds.builder(name) could not pass its argument

    class Builder(tfds.core.GeneratorBasedBuilder):
        """A TFDS builder of a Dataset. Its metadata hold the fingerprint and the versions."""

        VERSION = tfds.core.Version("1.0.0")
        # There is no checksum file; looking for it needs a package that TFDS 4.9 does not declare as a dependency.
        code_path = None

        def __init__(self, dataset: Dataset, *, data_dir: Path) -> None:
            self.dataset = dataset
            self.name = dataset.name
            super().__init__(data_dir=data_dir, file_format="array_record")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(dict(self.dataset.features)),
                disable_shuffling=not self.dataset.shuffled,
                metadata=tfds.core.MetadataDict(versions=dict(self.dataset.versions)),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            self.info.metadata["fingerprint"] = self.dataset.fingerprint
            return {split: self._generate_examples(split) for split in self.dataset.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(dict(example) for example in self.dataset.splits[split]())


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Writes all splits of a builder as ArrayRecord files, in bounded memory."""
    with in_bounded_memory():
        builder.download_and_prepare(file_format="array_record")


def prepared(dataset: Dataset, data: DataConfig) -> Builder:
    """The builder of a dataset, prepared once in the cache folder; `info.metadata["fingerprint"]` is that of its
    examples. UserError: the dataset's reader finds its files invalid."""
    classes = getattr(dataset.features.get("label"), "names", None)
    content = dict(dataset.versions) if dataset.code else dataset.fingerprint
    code = (*dataset.code, sys.modules[__name__])
    key = Key(cache_root(data) / "prepared" / dataset.name, [list(dataset.features), classes, content], code)

    def make(folder: Path) -> None:
        with quiet():
            prepare(Builder(dataset, data_dir=folder))

    folder = cached(key, make)
    with quiet():
        return Builder(dataset, data_dir=folder)
