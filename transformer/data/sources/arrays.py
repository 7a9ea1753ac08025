"""Arrays as a TFDS builder: images, recordings and series, stored as ArrayRecord and read at random."""

import dataclasses
import functools
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class ArrayData:
    """What a dataset of arrays holds, before it is prepared: `splits` gives the examples of each split, in order.

    `features` are those of TFDS, one for each key of an example.
    """

    name: str
    features: Mapping[str, Any]
    splits: Mapping[str, Callable[[], Iterator[dict[str, Any]]]]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of every example of every split, in order. UserError: a split has none."""
        digest = hashlib.sha256(json.dumps([self.name, list(self.features)]).encode())
        for split, examples in self.splits.items():
            count = 0
            for example in examples():
                count += 1
                for key, value in example.items():
                    if isinstance(value, np.ndarray):
                        digest.update(f"{key} {value.dtype.str} {value.shape} ".encode())
                        digest.update(np.ascontiguousarray(value).data)
                    else:
                        digest.update(f"{key} {value!r} ".encode())
            if not count:
                raise UserError(f"{self.name} has no example for its split {split!r}: add files to data.dir.")
            digest.update(json.dumps([split, count]).encode())
        return digest.hexdigest()


def array_feature(shape: tuple[int | None, ...], dtype: Any) -> tfds.features.Tensor:
    """A field of arrays, stored as their bytes; the first axis may be None, for any length."""
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


with tfds.core.registered.skip_registration():  # it takes arguments that tfds.builder(name) could not give

    class ArrayDataset(tfds.core.GeneratorBasedBuilder):
        """Arrays as a dataset, in their own order. The data folder is `<name>/<fingerprint>/<version>`."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # as in ParallelText: there are no checksums beside this file

        def __init__(self, data: ArrayData, *, data_dir: Path) -> None:
            self.data = data
            self.name = data.name
            config = tfds.core.BuilderConfig(name=data.fingerprint[:32], version=self.VERSION)
            super().__init__(data_dir=data_dir, config=config, file_format="array_record")

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict(dict(self.data.features))
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in self.data.splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(self.data.splits[split]())


# --- Files that a source reads


def folder_of(data: DataConfig, form: str) -> Path:
    """The folder `data.dir`. UserError: none is named, or there is none; `form` says what it should hold."""
    if not data.dir:
        raise UserError(f"{data.name} needs data.dir: name the folder that holds {form}.")
    folder = Path(data.dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.dir={data.dir} is no folder: name the one that holds {form}.")
    return folder


def read_bytes(path: Path) -> bytes:
    """The content of a file, unzipped where it is gzipped. UserError: it is damaged, or cannot be read."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}): fetch it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from error
