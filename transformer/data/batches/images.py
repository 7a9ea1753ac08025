"""Batches of images with classes."""

import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from transformer.config import DataConfig
from transformer.data.batches.augmentation import shifted_images
from transformer.data.batches.base import Batch
from transformer.data.batches.rows import RowBatches
from transformer.data.caching import ArrayWriter, Key, cache_root, cached, load_array
from transformer.data.sources import pictures
from transformer.data.sources.pictures import fitted, read_image
from transformer.data.sources.side_by_side import in_threads
from transformer.data.sources.source import Source, check_classes
from transformer.data.store import Texts
from transformer.errors import UserError


class ImageBatches(RowBatches):
    """Images of a fixed size with their class; `data.batch_tokens` counts images.

    Images of other sizes are fitted to `image_size` as `data.resize` says; those that are read from files have any
    number of channels, and get that of the model. Pixels are divided by 255 and normalised by `scale`. With
    `data.augment`, `batch` (never `evaluation`) shifts each image by up to a 14th of its side.

    Keys: inputs [B, H, W, C] float32, labels [B] int32, example_ids [B] int32; padding rows are zeros with example_id
    -1. UserErrors: images of another size than `image_size` without a rule, or of other channels than `channels`; a
    class that `train` does not have.
    """

    noun = "images"

    def __init__(
        self,
        source: Source,
        split: str,
        *,
        data: DataConfig,
        image_size: tuple[int, ...],
        channels: int,
        **others: int,
    ) -> None:
        shape = (*image_size, channels)
        own, training = (read_images(source, name, data, shape) for name in (split, "train"))
        self._pixels, self._labels = own.pixels, own.labels
        for height, width, depth in {training.pixels.shape[1:], own.pixels.shape[1:]} - {shape}:
            resize = ", or data.resize" if depth == channels else ""
            raise UserError(
                f"The images of {source.name} are {height} x {width} with {depth} channel(s), and the model takes "
                f"{shape[0]} x {shape[1]} with {channels}: set model.image_size={(height, width)} and "
                f"model.channels={depth}{resize}."
            )
        check_classes(source, split, own.labels, training.labels)
        self.mean, self.deviation = scale(source.facts, channels)
        super().__init__(len(self._pixels), shape[0] * shape[1], data, **others)

    def batch(self, step: int) -> Batch:
        made = super().batch(step)
        if self.data.augment:
            ids = made["example_ids"]
            moved = shifted_images(self._pixels[ids], self.seed, step // self.steps_per_epoch, ids)
            made["inputs"] = self._normalised(moved, ids)
        return made

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        del width
        return {
            "inputs": self._normalised(self._pixels[rows], rows),
            "labels": np.where(rows >= 0, self._labels[rows], 0).astype(np.int32),
            "example_ids": rows.astype(np.int32),
        }

    def _normalised(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        inputs = normalised(pixels, self.mean, self.deviation)
        inputs[rows < 0] = 0
        return inputs


def scale(facts: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of each channel of the training pixels / 255, float32 [C], of a source's facts."""
    own = facts.get("scales", {}).get(str(channels), facts)
    return np.array(own["mean"], np.float32), np.array(own["deviation"], np.float32)


def normalised(pixels: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Pixels [B, H, W, C] uint8 as a model reads them, float32."""
    made = pixels.astype(np.float32)
    made /= np.float32(255)  # in place: new arrays of this size take six times as long
    made -= mean
    made /= deviation
    return made


class Images(NamedTuple):
    """The images of a split: pixels [n, H, W, C] uint8, labels [n] int32."""

    pixels: np.ndarray
    labels: np.ndarray


def read_images(source: Source, split: str, data: DataConfig, shape: Sequence[int]) -> Images:
    """The fields `image` and `label` of a split, cached. Images of files, and all with `data.resize`, are fitted to
    `shape` (height, width, channels); others have their own, which is one for all. UserErrors: the source has no such
    fields; an image cannot be read, has another size than the others or, of a file, than `shape`, or is not 8-bit."""
    source.array("image")
    examples = source.split(split)
    paths, labels = examples.texts("image"), examples.numbers("label")
    scaled = paths is not None or bool(data.resize)
    inputs = [source.fingerprint, split, *([list(shape), data.resize] if scaled else [])]
    key = Key(
        cache_root(data) / "images", inputs, [pictures, read_images, _of_files, _stored], ("pillow",) if scaled else ()
    )

    def make(folder: Path) -> None:
        if paths is not None and labels is not None:
            rows = _of_files(paths, labels, data.resize, shape)
        else:
            rows = _stored(source, split, data.resize, shape)
        pixels, found = None, array.array("i")
        for image, label in tqdm(rows, f"reading images of {split}", len(examples), disable=None, leave=False):
            pixels = pixels or ArrayWriter(folder / "pixels.npy", image.shape, np.uint8)
            pixels.add(image[None])
            found.append(int(label))
        assert pixels is not None, "a split has an example"
        pixels.close()
        np.save(folder / "labels.npy", np.array(found, np.int32))

    folder = cached(key, make)
    return Images(load_array(folder / "pixels.npy"), np.load(folder / "labels.npy"))


def _of_files(paths: Texts, labels: np.ndarray, rule: str, shape: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """(pixels, label) of each example of a source whose images are files, read side by side."""

    def read(path: str) -> np.ndarray:
        return fitted(read_image(Path(path), shape[2]), shape[:2], rule, path)

    yield from zip(in_threads(read, paths), labels, strict=True)


def _stored(source: Source, split: str, rule: str, shape: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """(pixels, label) of each example of a source that stores pixels."""
    first = None
    for number, example in enumerate(source.split(split)):
        image = example["image"]
        if image.dtype == np.uint8 and rule:
            image = fitted(image, shape[:2], rule)
        first = image.shape if first is None else first
        if image.dtype != np.uint8 or image.shape != first:
            way = "choose another data.name" if image.dtype != np.uint8 or rule else "set data.resize"
            raise UserError(
                f"Image {number} of {source.name}, split {split!r}, is {image.dtype} of shape {image.shape}, and all "
                f"should be uint8 of one shape, as {first}: {way}."
            )
        if "label" not in example:
            raise UserError(f"{source.name} has no field 'label': choose a dataset of images with classes.")
        yield image, example["label"]
