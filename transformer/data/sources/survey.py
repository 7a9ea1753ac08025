"""What reading a TFDS dataset once tells: the fingerprint of all examples, facts of the images, and which examples of
`train` are kept for validation where the dataset has no split for it."""

import array
import dataclasses
import hashlib
import json
import logging
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data import builder
from transformer.data.builder import FORM, add_example, names_of
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sources import images
from transformer.data.sources.built import features_of
from transformer.data.sources.images import moments, value_counts
from transformer.data.sources.source import Source, ordered
from transformer.errors import UserError

logger = logging.getLogger(__name__)

VALIDATION_SHARE, VALIDATION_MOST = 0.05, 10_000  # of the examples of train


def surveyed(source: Source, made: tfds.core.DatasetBuilder, data: DataConfig) -> Source:
    """The source of a builder with the fingerprint of every example of every split, and facts of its images, if any.

    Where it has `train` and no `validation`, that is a part of `train`: VALIDATION_SHARE of the examples, or about
    VALIDATION_MOST, chosen by a hash of the first text field that the config names, or else of the arrays. So an
    example stays in its part wherever it stands, and equal ones are in the same part. All examples are read once; the
    result is cached as long as the prepared files do not change. UserError: no part of `train` can be chosen.
    """
    info = made.info
    stats = [(path.name, path.stat()) for path in sorted(Path(made.data_path).iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]
    shards = {name: split.shard_lengths for name, split in info.splits.items()}
    cut = {"train", "validation"} & set(source.splits) == {"train"} and data.validation in ("", "validation")
    by = tuple(field for field in (data.source, data.target) if field in source.fields)[:1]
    by = by or source.arrays or source.fields
    inputs = [info.full_name, shards, files, source.fields, source.arrays, source.splits, by if cut else None]
    key = Key(cache_root(data) / "surveys", inputs, [sys.modules[__name__], builder, images])

    training = info.splits["train"].num_examples if cut else 0

    def make(folder: Path) -> None:
        logger.info("reading all examples of %s for their fingerprint, once", source.name)
        found = _read(source, made, by, min(VALIDATION_SHARE, VALIDATION_MOST / training) if cut else -1.0)
        if cut and not len(found.kept):  # of a few examples, those with the lowest hash
            found = _read(source, made, by, found.lowest)
        if cut and len(found.kept) == training:
            raise UserError(
                f"{source.name} has no split 'validation', and too few examples in train to keep some for it: name "
                f"another split in data.validation, of {', '.join(source.splits)}."
            )
        if cut:
            told = "%s has no split 'validation': %d of the %d examples of train are kept for it (see data.validation)"
            logger.warning(told, source.name, len(found.kept), training)
        np.save(folder / "kept.npy", found.kept)
        (folder / "survey.json").write_text(json.dumps({"fingerprint": found.fingerprint, "facts": found.facts}))

    folder = cached(key, make)
    read = json.loads((folder / "survey.json").read_text())
    known = dataclasses.replace(source, fingerprint=read["fingerprint"], facts={**source.facts, **read["facts"]})
    if not cut:
        return known
    kept = np.load(folder / "kept.npy")
    others = np.ones(training, bool)
    others[kept] = False
    parts = {"train": ("train", np.flatnonzero(others)), "validation": ("train", kept)}
    return dataclasses.replace(known, splits=ordered([*source.splits, "validation"]), parts=parts)


class _Survey(NamedTuple):
    fingerprint: str
    facts: dict[str, Any]
    kept: np.ndarray  # numbers of the examples of train that are kept for validation
    lowest: float  # the lowest hash of train


def _read(source: Source, made: tfds.core.DatasetBuilder, by: Sequence[str], limit: float) -> _Survey:
    """Reads all examples. Those of train whose fields `by` have a hash of at most `limit` are kept for validation; the
    facts are of the others."""
    digest = hashlib.sha256(json.dumps([made.info.full_name, source.fields, source.arrays]).encode())
    counts: dict[int, np.ndarray] = {}  # by the number of channels
    kept, lowest = array.array("q"), 1.0
    for name in source.splits:
        examples = source.split(name)
        digest.update(json.dumps([name, len(examples)]).encode())
        for number, example in enumerate(examples):
            add_example(digest, example)
            if name != "train":
                continue
            place = _place(example, by) if limit >= 0 else 1.0
            lowest = min(lowest, place)
            image = example.get("image")
            if place <= limit:
                kept.append(number)
            elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
                added = value_counts(image)
                counts[len(added)] = counts.get(len(added), 0) + added
    digest.update(json.dumps([names_of(features_of(made), {}), kept.tolist()], sort_keys=True).encode())
    facts = moments(*counts.values()) if len(counts) == 1 else {}
    return _Survey(FORM + digest.hexdigest(), facts, np.array(kept, np.int64), lowest)


def _place(example: Mapping[str, Any], by: Sequence[str]) -> float:
    """From 0 to 1, a hash of these fields; texts count without surrounding white space, in one Unicode form."""
    values = {name: example[name] for name in by}
    texts = {name: unicodedata.normalize("NFC", value).strip() for name, value in values.items() if type(value) is str}
    digest = hashlib.sha256()
    add_example(digest, values | texts)
    return int.from_bytes(digest.digest()[:8], "big") / 2**64
