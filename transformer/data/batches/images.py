"""Batches of images with classes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.augmentation import shifted_images
from transformer.data.batches.base import Batch
from transformer.data.batches.rows import RowBatches
from transformer.data.caching import Key, cache_root, cached, load_array
from transformer.data.sources.source import Source, check_classes
from transformer.errors import UserError


class ImageBatches(RowBatches):
    """Images of a fixed size with their class; `data.batch_tokens` counts images.

    Pixels are divided by 255 and normalised by the training split's mean and deviation of each channel
    (`source.facts`). With `data.augment`, `batch` (never `evaluation`) shifts each image by up to a 14th of its side.

    Keys: inputs [B, H, W, C] float32, labels [B] int32, example_ids [B] int32; padding rows are zeros with example_id
    -1. UserErrors: images of another size than `image_size` and `channels`, a class that `train` does not have.
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
        own, training = read_images(source, split, data), read_images(source, "train", data)
        self._pixels, self._labels = own.pixels, own.labels
        shape = (*image_size, channels)
        for height, width, depth in {training.pixels.shape[1:], own.pixels.shape[1:]} - {shape}:
            raise UserError(
                f"The images of {source.name} are {height} x {width} with {depth} channel(s), and the model takes "
                f"{shape[0]} x {shape[1]} with {channels}: set model.image_size={(height, width)} and "
                f"model.channels={depth}."
            )
        check_classes(source, split, own.labels, training.labels)
        self.mean, self.deviation = (np.array(source.facts[name], np.float32) for name in ("mean", "deviation"))
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
        inputs = (pixels.astype(np.float32) / np.float32(255) - self.mean) / self.deviation
        inputs[rows < 0] = 0
        return inputs


class Images(NamedTuple):
    """The images of a split: pixels [n, H, W, C] uint8, labels [n] int32."""

    pixels: np.ndarray
    labels: np.ndarray


def read_images(source: Source, split: str, data: DataConfig) -> Images:
    """The fields `image` and `label` of a split, cached. UserErrors: the source has no such fields; its images have
    several sizes or are not 8-bit."""
    source.array("image")
    examples = source.split(split)
    key = Key(cache_root(data) / "images", [source.fingerprint, split], [read_images])

    def make(folder: Path) -> None:
        pixels: list[np.ndarray] = []
        labels = np.empty(len(examples), np.int32)
        for number, example in enumerate(examples):
            image = example["image"]
            if image.dtype != np.uint8 or (pixels and image.shape != pixels[0].shape):
                raise UserError(
                    f"Image {number} of {source.name}, split {split!r}, is {image.dtype} of shape {image.shape}, "
                    f"and all should be uint8 of one shape, as {pixels[0].shape if pixels else image.shape}: "
                    "choose another data.name."
                )
            if "label" not in example:
                raise UserError(f"{source.name} has no field 'label': choose a dataset of images with classes.")
            labels[number] = example["label"]
            pixels.append(image)
        np.save(folder / "pixels.npy", np.stack(pixels))
        np.save(folder / "labels.npy", labels)

    folder = cached(key, make)
    return Images(load_array(folder / "pixels.npy"), np.load(folder / "labels.npy"))
