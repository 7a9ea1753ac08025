"""Parallel text files as a TFDS builder: line n of one file is the translation of line n of the other."""

import dataclasses
import gzip
import hashlib
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import tensorflow_datasets as tfds

from transformer.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Which files make up a dataset: split -> field -> file, plain or gzipped UTF-8 with one example a line.

    With `hashed` there is one pair of files only, and a hash of its first field decides the split of a line.
    """

    splits: Mapping[str, Mapping[str, Path]]
    hashed: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(next(iter(self.splits.values())))

    def fingerprint(self, name: str) -> str:
        """Hex digest of all texts, which are read and checked on the way.

        UserErrors: files of unequal length, an empty file, no UTF-8, a split without an example.
        """
        digest = hashlib.sha256(json.dumps([name, self.fields, self.hashed]).encode())
        counts: Counter[str] = Counter()
        for part, files in self.splits.items():
            digest.update(json.dumps(part).encode())
            dropped = 0
            for lines in _aligned(files):
                digest.update("\n".join((*lines, "")).encode())
                if all(lines):
                    counts[self._split_of(part, lines)] += 1
                else:
                    dropped += 1
            if dropped:
                paths = " and ".join(str(path) for path in files.values())
                logger.warning("%d examples of %s are left out: one side is an empty line", dropped, paths)
        for split in self.split_names:
            if not counts[split]:
                named = " and ".join(map(str, self.splits[self._part_of(split)].values()))
                found = f"{counts.total()} examples in all" if self.hashed else f"no example in {split}"
                raise UserError(f"{named} give {found}, too few for {', '.join(self.split_names)}: add text.")
        return digest.hexdigest()

    @property
    def split_names(self) -> tuple[str, ...]:
        return ("train", "validation", "test") if self.hashed else tuple(self.splits)

    def examples(self, split: str) -> Iterator[dict[str, str]]:
        """The examples of a split in the order of the files; those with an empty line on one side are left out."""
        part = self._part_of(split)
        for lines in _aligned(self.splits[part]):
            if all(lines) and self._split_of(part, lines) == split:
                yield dict(zip(self.fields, lines, strict=True))

    def _part_of(self, split: str) -> str:
        """The entry of `splits` that holds the examples of a split."""
        return next(iter(self.splits)) if self.hashed else split

    def _split_of(self, part: str, lines: tuple[str, ...]) -> str:
        if not self.hashed:
            return part
        # Of the text and nothing else, so that the same sentence is never in two splits.
        bucket = int.from_bytes(hashlib.sha256(lines[0].encode()).digest()[:8], "big") % 20
        return {0: "validation", 1: "test"}.get(bucket, "train")


def _aligned(files: Mapping[str, Path]) -> Iterator[tuple[str, ...]]:
    """Line n of every file, without surrounding white space."""
    readers = [lines_of(path) for path in files.values()]
    for number, lines in enumerate(zip_longest(*readers)):
        if None in lines:
            counted = " but ".join(
                f"{path} has {number + (line is not None) + sum(1 for _ in reader)} lines"
                for path, line, reader in zip(files.values(), lines, readers, strict=True)
            )
            raise UserError(f"{counted}: line n of one must translate line n of the other.")
        yield lines


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, plain or gzipped, without surrounding white space.

    They end at a line feed only, since U+2028 and its kind belong to the text. UserErrors: the file is empty, damaged,
    not UTF-8 (with the line), or cannot be read.
    """
    number = 0
    try:
        with opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8 in line {number}: convert it, for example with iconv.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}): fetch it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from error
    if not number:
        raise UserError(f"{path} is empty: give a file with one example a line.")


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, plain or gzipped."""
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")  # type: ignore[return-value]


with tfds.core.registered.skip_registration():  # it takes arguments that tfds.builder(name) could not give

    class ParallelText(tfds.core.GeneratorBasedBuilder):
        """Text files as a dataset of string fields, in the order of the files.

        The data folder is `<name>/<fingerprint>/<version>`: other files, another folder.
        """

        VERSION = tfds.core.Version("1.0.0")
        # There are no checksums beside this file; looking for them needs a package that TFDS 4.9 forgets to require.
        code_path = None

        def __init__(self, files: TextFiles, *, name: str, fingerprint: str, data_dir: Path) -> None:
            self.files = files
            self.name = name
            config = tfds.core.BuilderConfig(name=fingerprint[:32], version=self.VERSION)
            super().__init__(data_dir=data_dir, config=config, file_format="array_record")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({field: tfds.features.Text() for field in self.files.fields}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
            return {split: self._generate_examples(split) for split in self.files.split_names}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
            yield from enumerate(self.files.examples(split))
