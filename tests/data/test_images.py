import dataclasses
import gzip
import io
import itertools
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from transformer.config import DataConfig
from transformer.data.batches.augmentation import uniforms
from transformer.data.batches.images import ImageBatches
from transformer.data.builder import quiet
from transformer.data.sources import images, load_source
from transformer.data.sources.source import Source
from transformer.errors import UserError

SPLITS = ("train", "validation", "test")
STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def toy_arrays(train: int = 61, test: int = 13) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (count, 7, 5)).astype(np.uint8) for count in (train, test)]
    labels = [(np.arange(count) % 10).astype(np.uint8) for count in (train, test)]
    return dict(zip(STEMS, (pixels[0], labels[0], pixels[1], labels[1]), strict=True))


def write_mnist(folder: Path, arrays: dict[str, np.ndarray], zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in arrays.items():
        content = idx(array)
        (folder / f"{stem}{'.gz' if zipped else ''}").write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MNIST_VALIDATION", 17)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    write_mnist(folder, toy_arrays())
    return folder


def config(folder: Path | str, cache: Path, name: str = "mnist", **changes: object) -> DataConfig:
    return DataConfig(name=name, dir=str(folder), cache=str(cache), **{"batch_tokens": 11, "row_multiple": 4} | changes)


@pytest.fixture
def data(mnist_folder: Path, cache: Path) -> DataConfig:
    return config(mnist_folder, cache)


@pytest.fixture
def source(data: DataConfig) -> Source:
    return load_source(data)


def make(source: Source, split: str, data: DataConfig, **options: int) -> ImageBatches:
    return ImageBatches(source, split, **{"seed": 3} | options, data=data, image_size=(7, 5), channels=1)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype == (np.float32 if key == "inputs" else np.int32)


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


# --- Sources


def test_mnist_from_its_own_files(source: Source) -> None:
    arrays = toy_arrays()
    assert source.splits == SPLITS
    assert (source.fields, source.arrays, source.classes) == ((), ("image",), tuple("0123456789"))
    parts = {
        "train": (arrays[STEMS[0]][:-17], arrays[STEMS[1]][:-17]),
        "validation": (arrays[STEMS[0]][-17:], arrays[STEMS[1]][-17:]),
        "test": (arrays[STEMS[2]], arrays[STEMS[3]]),
    }
    for split, (pixels, labels) in parts.items():
        examples = list(source.split(split))
        np.testing.assert_array_equal(np.stack([example["image"] for example in examples]), pixels[..., None])
        assert [example["label"] for example in examples] == labels.tolist()
        assert examples[0]["image"].dtype == np.uint8


def test_the_fingerprint_is_of_pixels_and_labels(tmp_path: Path, source: Source, cache: Path) -> None:
    write_mnist(tmp_path / "plain", toy_arrays(), zipped=False)
    assert load_source(config(tmp_path / "plain", cache)).fingerprint == source.fingerprint
    for number, stem in enumerate(STEMS):
        arrays = toy_arrays()
        arrays[stem][(2,) * arrays[stem].ndim] ^= 1
        write_mnist(tmp_path / str(number), arrays)
        assert load_source(config(tmp_path / str(number), cache)).fingerprint != source.fingerprint


def test_digits_are_those_of_scikit_learn_with_no_image_in_two_splits(cache: Path) -> None:
    from sklearn.datasets import load_digits

    source = load_source(config("", cache, "digits"))
    found = {split: [(e["image"].tobytes(), int(e["label"])) for e in source.split(split)] for split in SPLITS}
    loaded = load_digits()
    pairs = zip(loaded.images, loaded.target.tolist(), strict=True)
    expected = sorted(((image * 15).astype(np.uint8).tobytes(), label) for image, label in pairs)
    assert sorted(itertools.chain(*found.values())) == expected
    pixels = {split: {image for image, _ in examples} for split, examples in found.items()}
    assert not pixels["train"] & (pixels["validation"] | pixels["test"])
    assert not pixels["validation"] & pixels["test"]
    for split, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
        assert abs(len(found[split]) / 1797 - share) < 0.025  # three deviations of a fair hash
        assert {label for _, label in found[split]} == set(range(10))
    assert load_source(config("", cache, "digits")).fingerprint == source.fingerprint


BAD = {
    "a cut-off file": (lambda content: content[:-3], "holds 2132 bytes after its header, not the 2135 of shape"),
    "a longer file": (lambda content: content + b"\0", "holds 2136 bytes after its header"),
    "no header": (lambda content: b"\0\0\x08", "no IDX file of bytes with 3 axes"),
    "floats": (lambda content: b"\0\0\x0d\3" + content[4:], "no IDX file of bytes with 3 axes"),
    "two axes": (lambda content: b"\0\0\x08\2" + content[4:], "no IDX file of bytes with 3 axes"),
    "a page": (lambda content: b"<html>not found</html>", "no IDX file of bytes with 3 axes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_idx_file(case: str, tmp_path: Path, cache: Path) -> None:
    damage, message = BAD[case]
    write_mnist(tmp_path, toy_arrays(), zipped=False)
    path = tmp_path / STEMS[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{STEMS[0]}.*{message}") as caught:
        load_source(config(tmp_path, cache))
    assert "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path: Path, cache: Path) -> None:
    arrays = toy_arrays()
    write_mnist(tmp_path / "a", arrays | {STEMS[1]: arrays[STEMS[1]][:-1]})
    with pytest.raises(UserError, match=r"has 61 images but .* has 60 labels"):
        load_source(config(tmp_path / "a", cache))
    write_mnist(tmp_path / "b", arrays | {STEMS[3]: arrays[STEMS[3]] + np.uint8(4)})
    with pytest.raises(UserError, match="has the label 13"):
        load_source(config(tmp_path / "b", cache))
    write_mnist(tmp_path / "c", toy_arrays(train=17))
    with pytest.raises(UserError, match="holds 17 images, too few to keep the last 17"):
        load_source(config(tmp_path / "c", cache))
    write_mnist(tmp_path / "d", arrays)
    (tmp_path / "d" / f"{STEMS[2]}.gz").write_bytes(gzip.compress(idx(arrays[STEMS[2]]))[:-20])
    with pytest.raises(UserError, match="damaged gzip file"):
        load_source(config(tmp_path / "d", cache))
    (tmp_path / "d" / f"{STEMS[2]}.gz").unlink()
    with pytest.raises(UserError, match=r"no file .*t10k-images-idx3-ubyte, plain or as \.gz"):
        load_source(config(tmp_path / "d", cache))
    with pytest.raises(UserError, match=r"data\.dir=.*nowhere is no folder"):
        load_source(config(tmp_path / "nowhere", cache))


# --- TFDS by name

with tfds.core.registered.skip_registration():

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        """As TFDS stores images: encoded as PNG, with a train and a test split only."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(7, 5, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
            return {"train": self._generate_examples(40), "test": self._generate_examples(6)}

        def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
            for i in range(count):
                path = Path(self.data_dir).parent / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(tiny_pixels(i))
                (image if i % 3 else image.quantize(kmeans=35)).save(path)  # every third with a palette
                yield i, {"image": str(path), "label": i % 2}


def tiny_pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (7, 5, 3)).astype(np.uint8)


READ = """
    import sys
    import numpy as np
    from transformer.config import DataConfig
    from transformer.data.batches.images import ImageBatches
    from transformer.data.sources import load_source

    data = DataConfig(name="tiny_images", dir=sys.argv[1], cache=sys.argv[2], batch_tokens=8)
    source = load_source(data)
    made = {split: ImageBatches(source, split, seed=0, data=data, image_size=(7, 5), channels=3) for split in
            source.splits}
    np.savez(sys.argv[3], **{f"{split} {key}": np.concatenate([batch[key] for batch in batches.evaluation()])
                             for split, batches in made.items() for key in ("inputs", "labels", "example_ids")},
             mean=made["test"].mean, deviation=made["test"].deviation)
    print(source.splits, source.classes, "tensorflow" in sys.modules)
"""


def test_a_prepared_dataset_of_tfds_is_read_without_tensorflow(tmp_path: Path) -> None:
    with quiet():
        TinyImages(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    arguments = [str(tmp_path / "tfds"), str(tmp_path / "cache"), str(tmp_path / "read.npz")]
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ), *arguments], capture_output=True, text=True, check=False
    )
    assert ran.stdout == "('train', 'validation', 'test') ('cat', 'dog') False\n", ran.stderr
    read = np.load(tmp_path / "read.npz")
    found: dict[str, dict[bytes, int]] = {}
    for split in SPLITS:  # the pixels again, from what the batches made of them
        real = read[f"{split} example_ids"] >= 0
        pixels = np.rint((read[f"{split} inputs"][real] * read["deviation"] + read["mean"]) * 255).astype(np.uint8)
        labels = read[f"{split} labels"][real].tolist()
        found[split] = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    written = {count: {tiny_pixels(i).tobytes(): i % 2 for i in range(count)} for count in (40, 6)}
    assert (len(found["train"]), len(found["validation"])) == (39, 1)  # by a hash of the pixels
    assert found["train"] | found["validation"] == written[40]
    assert not found["train"].keys() & found["validation"].keys()
    assert found["test"] == written[6]


RGB = tiny_pixels(0)
GREY = RGB[..., :1]
DEEP = Image.fromarray(GREY[..., 0].astype(np.uint16) * 256)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # its right side is the top


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


SEEN: dict[str, tuple[Image.Image, int, np.ndarray]] = {  # image, channels of the feature, what is to be seen
    "colours": (Image.fromarray(RGB), 3, RGB),
    "grey as colours": (Image.fromarray(GREY[..., 0]), 3, GREY.repeat(3, -1)),
    "grey": (Image.fromarray(GREY[..., 0]), 1, GREY),
    "grey of any channels": (Image.fromarray(GREY[..., 0]), None, GREY),
    "palette": (Image.fromarray(RGB).quantize(kmeans=35), 3, RGB),
    "palette of any channels": (Image.fromarray(RGB).quantize(kmeans=35), None, RGB),
    "black and white": (Image.fromarray(GREY[..., 0] > 99), 1, (GREY > 99) * np.uint8(255)),
    "transparency": (Image.fromarray(np.concatenate([RGB, GREY], -1)), 4, np.concatenate([RGB, GREY], -1)),
    "transparency, dropped": (Image.fromarray(np.concatenate([RGB, GREY], -1)), 3, RGB),
}


def pixels_of(content: bytes, channels: int | None) -> np.ndarray:
    decoder = images.Pixels("pictures")
    decoder.setup(feature=tfds.features.Image(shape=(None, None, channels)))
    return decoder.decode_example_np(content)


@pytest.mark.parametrize("case", SEEN)
def test_images_are_decoded_as_they_are_seen(case: str) -> None:
    image, channels, expected = SEEN[case]
    found = pixels_of(encoded(image), channels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_images_are_upright_and_of_the_colours_of_their_inks() -> None:
    turned = pixels_of(encoded(Image.fromarray(RGB), exif=TURNED), 3)
    np.testing.assert_array_equal(turned, np.rot90(RGB, -1))
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), (200, 30, 60), np.uint8)).convert("CMYK").save(file, "JPEG", quality=100)
    assert np.abs(pixels_of(file.getvalue(), 3).astype(int) - (200, 30, 60)).max() < 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(DEEP), "pictures has an image of I;16 pixels, not of 8 bits"),
        (encoded(Image.fromarray(RGB))[:-40], r"pictures has an image that cannot be read \(image file is truncated"),
        (b"\x89PNG nothing", r"pictures has an image that cannot be read \(cannot identify image file\): prepare it"),
        (b"", "pictures has an image that cannot be read"),
    ],
    ids=["16 bits", "cut off", "broken", "empty"],
)
def test_images_that_cannot_be_decoded(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pixels_of(content, 3)
    assert "\n" not in str(caught.value)


# --- Batches


def test_pixels_become_z_scores_of_the_training_split(source: Source, data: DataConfig) -> None:
    arrays = toy_arrays()
    training = arrays[STEMS[0]][:-17].astype(np.float64) / 255
    for split, pixels, labels in (
        ("train", arrays[STEMS[0]][:-17], arrays[STEMS[1]]),
        ("test", *list(arrays.values())[2:]),
    ):
        whole = joined(list(make(source, split, data).evaluation()))
        assert whole["inputs"].shape == (-(-len(pixels) // 8) * 8, 7, 5, 1)
        ids = whole["example_ids"]
        assert ids[ids >= 0].tolist() == list(range(len(pixels)))
        expected = (pixels / 255 - training.mean()) / training.std()
        np.testing.assert_allclose(whole["inputs"][: len(pixels), ..., 0], expected, atol=1e-5)
        np.testing.assert_array_equal(whole["labels"][: len(pixels)], labels[: len(pixels)])
        assert not whole["inputs"][len(pixels) :].any()
        assert (ids[len(pixels) :] == -1).all()


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_depends_on_the_seed_and_the_step_only(source: Source, data: DataConfig, augment: bool) -> None:
    data = dataclasses.replace(data, augment=augment)
    batches, again = make(source, "train", data), make(source, "train", data)
    steps = batches.steps_per_epoch
    assert steps == 6  # 44 images in rows of 8
    for step in (2 * steps + 1, 0, steps - 1, steps, 3):  # in any order
        same(batches.batch(step), again.batch(step))
    other = make(source, "train", data, seed=4)
    assert any((batches.batch(s)["example_ids"] != other.batch(s)["example_ids"]).any() for s in range(2))
    for number in range(2):
        ids = joined([batches.batch(number * steps + step) for step in range(steps)])["example_ids"]
        assert sorted(ids[ids >= 0].tolist()) == list(range(44))
        assert (ids < 0).sum() == 4
    assert (batches.batch(0)["example_ids"] != batches.batch(steps)["example_ids"]).any()
    assert batches.too_long is None
    with pytest.raises(UserError, match=r"data.too_long='cut' says nothing of images, all of one size: leave it out"):
        make(source, "train", dataclasses.replace(data, too_long="cut"))
    assert batches.report == {"kept": 44, "dropped": 0, "fill": 44 / 48, "shapes": [(8, 35)], "steps_per_epoch": 6}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_the_global_batch(source: Source, data: DataConfig, count: int) -> None:
    data = dataclasses.replace(data, augment=True)
    whole = make(source, "train", data)
    parts = [make(source, "train", data).part([index], count) for index in range(count)]
    for step in range(7):
        same(whole.batch(step), joined([part.batch(step) for part in parts]))
    for together, *shares in zip(whole.evaluation(), *(part.evaluation() for part in parts), strict=True):
        same(together, joined(shares))


def test_augmented_images_are_shifted_copies(source: Source, data: DataConfig) -> None:
    plain, moved = make(source, "train", data), make(source, "train", dataclasses.replace(data, augment=True))
    pixels = toy_arrays()[STEMS[0]]
    black = -plain.mean[0] / plain.deviation[0]
    seen = set()
    for step in range(2 * plain.steps_per_epoch):
        before, after = plain.batch(step), moved.batch(step)
        np.testing.assert_array_equal(before["labels"], after["labels"])
        for row, example in enumerate(after["example_ids"].tolist()):
            if example < 0:
                assert not after["inputs"][row].any()
                continue
            scaled = (pixels[example] / 255 - plain.mean[0]) / plain.deviation[0]
            fits = []
            for down in range(-1, 2):
                for right in range(-1, 2):
                    expected = np.full((7, 5), black)
                    for y in range(7):
                        for x in range(5):
                            if 0 <= y - down < 7 and 0 <= x - right < 5:
                                expected[y, x] = scaled[y - down, x - right]
                    if np.allclose(after["inputs"][row, ..., 0], expected, atol=1e-5):
                        fits.append((down, right))
            assert len(fits) == 1
            seen.add((step // plain.steps_per_epoch, example, *fits[0]))
    assert {down for *_, down, _ in seen} == {right for *_, right in seen} == {-1, 0, 1}
    epochs = [{entry[1]: entry[2:] for entry in seen if entry[0] == number} for number in range(2)]
    assert epochs[0] != epochs[1]
    for a, b in zip(plain.evaluation(), moved.evaluation(), strict=True):
        same(a, b)  # never in evaluation


def test_random_numbers_are_even_and_belong_to_the_example() -> None:
    many = uniforms(5, 2, np.arange(4000), 3)
    assert many.min() >= 0
    assert many.max() < 1
    for column in many.T:  # each tenth holds 400 of 4000, within five deviations
        assert abs(np.histogram(column, 10, (0, 1))[0] - 400).max() < 5 * np.sqrt(360)
    correlations = np.corrcoef(np.concatenate([many.T, uniforms(5, 3, np.arange(4000), 3).T, many.T[:, ::-1]]))
    assert np.abs(correlations - np.eye(9)).max() < 5 / np.sqrt(4000)
    np.testing.assert_array_equal(uniforms(5, 2, np.array([1234, 7]), 2), many[[1234, 7], :2])

    def splitmix(state: int, steps: int) -> int:  # as Vigna's C code has it
        for _ in range(steps):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    assert splitmix(0, 1) == 0xE220A8397B1DCDAF  # its first number from 0, as published
    state = 5
    for number in (2, 1234, 1):  # epoch, example, place: what a seed means is part of every published figure
        state = splitmix(state, number + 1)
    assert many[1234, 1] == (state >> 11) / 2**53


def test_images_of_another_size_than_the_models(source: Source, data: DataConfig) -> None:
    for size, channels in (((5, 7), 1), ((7, 5), 3), ((28, 28), 1)):
        with pytest.raises(UserError, match=r"mnist are 7 x 5 with 1 .*: set model\.image_size=\(7, 5\) and model\.ch"):
            ImageBatches(source, "test", seed=0, data=data, image_size=size, channels=channels)


def test_a_class_that_train_has_never_seen(tmp_path: Path, cache: Path) -> None:
    arrays = toy_arrays()
    arrays[STEMS[1]] = np.where(arrays[STEMS[1]] == 4, 5, arrays[STEMS[1]]).astype(np.uint8)
    write_mnist(tmp_path, arrays)
    data = config(tmp_path, cache)
    source = load_source(data)
    with pytest.raises(UserError, match="'test' of mnist has the class '4', of which train has no example"):
        make(source, "test", data)
    assert make(source, "validation", data).steps_per_epoch == 3


def test_a_source_without_images(cache: Path) -> None:
    data = config("", cache, "co2")
    with pytest.raises(UserError, match="co2 has no field 'image' of arrays"):
        make(load_source(data), "train", data)
