"""Images: MNIST from its own files, and the 8 x 8 digits of scikit-learn. Fields: `image`, uint8 [H, W, 1] with 0 for
black, and `label`, the digit."""

import functools
import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import Dataset, array_feature, of_arrays
from transformer.data.sources.files import existing, folder_of, read_bytes
from transformer.data.sources.pictures import MODES, upright
from transformer.errors import UserError

MNIST_VALIDATION = 5_000  # the last of the 60,000 training images
DIGITS_SHARES = (("train", 70), ("validation", 15), ("test", 15))  # percent


def mnist(data: DataConfig) -> Dataset | None:
    """MNIST (LeCun et al., 1998) of `data.dir`, plain or gzipped: 55,000, 5,000 and 10,000 images of 28 x 28.

    The validation split is the last 5,000 training images. Fashion-MNIST has the same file format. Returns None, which
    means TFDS's dataset of that name, without `data.dir` or where that is a folder of prepared datasets.
    """
    if not data.dir or (Path(data.dir).expanduser() / "mnist").is_dir():
        return None
    folder = folder_of(data, "train-images-idx3-ubyte and the other three files of MNIST, plain or as .gz")
    training, test = (_labelled(folder, stem) for stem in ("train", "t10k"))
    if len(training[0]) <= MNIST_VALIDATION:
        raise UserError(
            f"{folder}/train-images-idx3-ubyte holds {len(training[0])} images, too few to keep the last "
            f"{MNIST_VALIDATION} for validation: fetch the whole file."
        )
    parts = {
        "train": tuple(part[:-MNIST_VALIDATION] for part in training),
        "validation": tuple(part[-MNIST_VALIDATION:] for part in training),
        "test": test,
    }
    return _image_data("mnist", parts)


def digits(data: DataConfig) -> Dataset:
    """The 1,797 digits of scikit-learn (UCI, Alpaydin and Kaynak, 1998), 8 x 8 pixels of 17 greys, as 0, 15, ..., 240.
    A hash of its pixels decides the split of an image (70 / 15 / 15 percent), so that equal images are in the same
    split."""
    del data  # it is installed with scikit-learn
    from sklearn.datasets import load_digits  # slow to import

    loaded = load_digits()
    pixels = (loaded.images * 15).astype(np.uint8)[..., None]
    names = np.array([_split_of(image) for image in pixels])
    parts = {split: (pixels[names == split], loaded.target[names == split]) for split, _ in DIGITS_SHARES}
    return _image_data("digits", parts)


def _split_of(image: np.ndarray) -> str:
    place = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") % 100
    for split, share in DIGITS_SHARES:
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares add up to 100")


def _image_data(name: str, parts: Mapping[str, tuple[np.ndarray, ...]]) -> Dataset:
    """`parts`: split -> (pixels [n, H, W, 1], labels [n])."""

    def examples(split: str) -> Iterator[dict[str, Any]]:
        for image, label in zip(*parts[split], strict=True):
            yield {"image": image, "label": int(label)}

    features = {
        "image": array_feature(parts["train"][0].shape[1:], np.uint8),
        "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
    }
    facts = moments(value_counts(parts["train"][0]))
    return of_arrays(name, features, {split: functools.partial(examples, split) for split in parts}, facts=facts)


def value_counts(pixels: np.ndarray) -> np.ndarray:
    """Histogram of each channel of images [..., C] uint8: int64 [C, 256]."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(pixels, -1, 0)])


def moments(counts: np.ndarray) -> dict[str, list[float]]:
    """`mean` and `deviation` of each channel of pixels / 255, from `value_counts`, in float32; the deviation of a
    constant channel is 1."""
    grey, shares = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ grey
    deviation = np.sqrt((shares * (grey - mean[:, None]) ** 2).sum(axis=1))
    deviation = np.where(deviation > 0, deviation, 1)
    return {"mean": mean.astype(np.float32).tolist(), "deviation": deviation.astype(np.float32).tolist()}


class Pixels(tfds.decode.Decoder):
    """Decodes the 8-bit images of a TFDS dataset as they are seen: upright by EXIF, of the colours of their palette or
    of CMYK, black and white as 0 and 255, in the channels of the feature (transparency is dropped where it has none).
    TFDS itself takes numbers of a palette for greys, 1 for white, and 16 bits modulo 256. UserErrors: an image has 16
    bits a channel, or cannot be read."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def decode_example(self, serialized_image: Any) -> Any:
        raise NotImplementedError("TFDS calls this with TensorFlow only, which is not used here")

    def decode_example_np(self, content: bytes) -> np.ndarray:
        """Pixels [H, W, C], uint8."""
        image = upright(content, f"{self.name} has an image", "prepare it again")
        channels = self.feature.shape[-1]
        mode = MODES.get(channels) or (image.mode if image.mode in MODES.values() else "RGB")
        return np.array(image.convert(mode)).reshape(image.height, image.width, -1)


def decoders(name: str, builder: tfds.core.DatasetBuilder) -> dict[str, Pixels] | None:
    """What decodes the fields of a builder that are 8-bit images; None where there is none."""
    features = builder.info.features
    images = [
        key for key in features if type(features[key]) is tfds.features.Image and features[key].np_dtype == np.uint8
    ]
    return {key: Pixels(name) for key in images} or None


def _labelled(folder: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, H, W, 1] and labels [n] of the two files with this stem."""
    paths = [existing([folder], [f"{stem}-{kind}"]) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    pixels, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(pixels) != len(labels):
        counts = f"{paths[0]} has {len(pixels)} images but {paths[1]} has {len(labels)} labels"
        raise UserError(f"{counts}: fetch both again.")
    if labels.max(initial=0) > 9:
        raise UserError(f"{paths[1]} has the label {labels.max()}, and digits go from 0 to 9: fetch it again.")
    return pixels[..., None], labels


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file of bytes, plain or gzipped: two zeros, 8 (bytes), the number of axes, their sizes, the values.
    UserError: it is no IDX file, has another number of axes, or is cut off."""
    content = read_bytes(path)
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes([0, 0, 8, axes]):
        raise UserError(f"{path} is no IDX file of bytes with {axes} axes: fetch it again.")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise UserError(
            f"{path} holds {len(content) - header} bytes after its header, not the {math.prod(shape)} of shape "
            f"{shape}: it is cut off or damaged, fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
