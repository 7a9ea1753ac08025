"""Own images: which there are, their classes and splits, their pixels in a batch, and the sentences for mistakes."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformer.config import ColumnsConfig, DataConfig
from transformer.data.batches import images
from transformer.data.batches.images import ImageBatches, scale
from transformer.data.sources import load_source
from transformer.data.sources.pictures import fitted, read_image
from transformer.errors import UserError

CLASSES = ("bird", "cat")
COUNTS = {"train": 6, "validation": 2, "test": 3}


def picture(split: str, label: str, number: int, colour: bool = True) -> np.ndarray:
    """Random pixels of a size of their own."""
    seed = [ord(letter) for letter in f"{split}/{label}/{number}"]
    random = np.random.default_rng(seed)
    height, width = random.integers(5, 20, 2)
    return random.integers(0, 256, (height, width, 3) if colour else (height, width)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """FOLDER/SPLIT/CLASS/NUMBER.png; the first of each class is grey."""
    for split, count in COUNTS.items():
        for label in CLASSES:
            for number in range(count):
                pixels = picture(split, label, number, colour=number > 0)
                save(tmp_path / "own" / split / label / f"{number}.png", pixels)
    return tmp_path / "own"


@pytest.fixture
def data(tmp_path: Path, folder: Path) -> DataConfig:
    return DataConfig(
        name="image_folder", dir=str(folder), cache=str(tmp_path / "cache"), resize="crop", batch_tokens=8
    )


def batches(data: DataConfig, split: str = "train", size: tuple[int, int] = (8, 6), channels: int = 3) -> ImageBatches:
    return ImageBatches(load_source(data), split, data=data, image_size=size, channels=channels, seed=0)


def test_folders_of_splits_and_classes(folder: Path, data: DataConfig) -> None:
    shutil.move(folder / "validation", folder / "val")
    source = load_source(data)
    assert source.splits == ("train", "validation", "test")
    assert source.classes == CLASSES
    assert (source.fields, source.arrays) == ((), ("image",))
    for split, count in COUNTS.items():
        examples = source.split(split)
        assert [example["label"] for example in examples] == [0] * count + [1] * count
        for place, label in ((0, "bird"), (count + 1, "cat")):
            pixels = picture(split, label, place % count, colour=place > 0)
            expected = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, -1)
            np.testing.assert_array_equal(examples[place]["image"], expected)


def test_nested_folders_belong_to_the_first(folder: Path, data: DataConfig) -> None:
    plain = load_source(data)
    (folder / "train" / "cat" / "old").mkdir()
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    for hidden in (folder / "train" / "cat" / ".old", folder / "train" / ".thumbs"):
        save(hidden / "1.png", picture("train", "cat", 1))
    shutil.move(folder / "train" / "cat" / "5.png", folder / "train" / "cat" / "old" / "6.PNG")
    source = load_source(data)
    assert source.classes == CLASSES
    assert len(source.split("train")) == 12
    assert source.fingerprint != plain.fingerprint


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("rule", ["crop", "squash", "pad"])
def test_batches_hold_every_image_fitted_and_scaled(folder: Path, data: DataConfig, rule: str, channels: int) -> None:
    data = dataclasses.replace(data, resize=rule)
    made = batches(data, "test", channels=channels)
    pixels = [
        read_image(folder / "train" / label / f"{number}.png", channels) / 255
        for label in CLASSES
        for number in range(6)
    ]
    flat = np.concatenate([own.reshape(-1, channels) for own in pixels])
    mean, deviation = flat.mean(0), np.where(flat.std(0) > 0, flat.std(0), 1)
    seen = []
    for batch in made.evaluation():
        assert batch["inputs"].shape[1:] == (8, 6, channels)
        for row in np.flatnonzero(batch["example_ids"] >= 0):
            number = batch["example_ids"][row]
            label, place = divmod(number, 3)
            assert batch["labels"][row] == label
            own = fitted(read_image(folder / "test" / CLASSES[label] / f"{place}.png", channels), (8, 6), rule)
            np.testing.assert_allclose(batch["inputs"][row], (own / 255 - mean) / deviation, atol=1e-5)
            seen.append(number)
    assert seen == list(range(6))


def test_what_is_read_once_is_not_read_again(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = batches(data).batch(3)

    def never(*arguments: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(images, "read_image", never)
    again = batches(data).batch(3)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    with pytest.raises(AssertionError, match="read again"):
        batches(data, size=(9, 6))


def test_the_cache_is_written_in_parts(data: DataConfig) -> None:
    """It is what np.save writes of all pixels together."""
    made = batches(data)
    (path,) = (path for path in Path(data.cache).glob("images/*/pixels.npy") if len(np.load(path)) == 12)
    np.save(path.parent / "whole.npy", np.load(path))
    assert path.read_bytes() == (path.parent / "whole.npy").read_bytes()
    assert made.report["kept"] == 12


def test_moved_files_are_the_same_data(tmp_path: Path, folder: Path, data: DataConfig) -> None:
    before = load_source(data)
    shutil.copytree(folder, tmp_path / "other" / "place")
    moved = dataclasses.replace(data, dir=str(tmp_path / "other" / "place"))
    shutil.rmtree(folder)
    after = load_source(moved)
    assert after.fingerprint == before.fingerprint
    assert after.facts == before.facts
    assert after.split("test")[1]["image"].shape == picture("test", "bird", 1).shape


@pytest.mark.parametrize("change", ["pixel", "class", "split", "order"])
def test_other_files_are_other_data(folder: Path, data: DataConfig, change: str) -> None:
    before = load_source(data)
    one = folder / "train" / "cat" / "1.png"
    if change == "pixel":
        pixels = read_image(one, 3).copy()
        pixels[2, 2, 1] ^= 1
        save(one, pixels)
    elif change == "class":
        shutil.move(one, folder / "train" / "bird" / "99.png")
    elif change == "split":
        shutil.move(one, folder / "test" / "cat" / "99.png")
    else:
        shutil.move(one, folder / "train" / "cat" / "0.5.png")
    assert load_source(data).fingerprint != before.fingerprint


def of_classes(folder: Path, copies: int = 1) -> Path:
    """FOLDER/CLASS/NUMBER.png, 60 of each class, each `copies` times under other names."""
    for label in CLASSES:
        for number in range(60):
            for copy in range(copies):
                save(folder / label / f"{number:02}_{copy}.png", picture("", label, number))
    return folder


def test_classes_alone_are_split_by_a_hash_of_the_bytes(tmp_path: Path, data: DataConfig) -> None:
    data = dataclasses.replace(data, dir=str(of_classes(tmp_path / "alone", copies=2)), split="hash:60/20/20")
    source = load_source(data)
    held: dict[str, set[bytes]] = {}
    for split in source.splits:
        contents = [example["image"].tobytes() for example in source.split(split)]
        held[split] = set(contents)
        assert len(contents) == 2 * len(held[split])
    assert sum(map(len, held.values())) == len(set().union(*held.values())) == 120
    assert 50 < len(held["train"]) < 95
    labels = [example["label"] for example in source.split("test")]
    assert set(labels) == {0, 1}


def test_splits_by_size_are_drawn_from_all_classes(tmp_path: Path, data: DataConfig) -> None:
    source = load_source(dataclasses.replace(data, dir=str(of_classes(tmp_path / "x")), split="sizes:80/20/20"))
    assert [len(source.split(split)) for split in source.splits] == [80, 20, 20]
    for split in source.splits:
        share = np.mean([example["label"] for example in source.split(split)])
        assert 0.2 < share < 0.8


def test_globs_and_folders_with_splits(folder: Path, data: DataConfig) -> None:
    files = ("train=train/*/*.png", "validation=validation", "test=test/*/[01].png")
    source = load_source(dataclasses.replace(data, files=files))
    assert [len(source.split(split)) for split in source.splits] == [12, 4, 4]
    assert source.classes == CLASSES
    assert source.split("test")[3]["image"].shape == picture("test", "cat", 1).shape


# --- Tables


def table(folder: Path, name: str, rows: list[dict[str, str]]) -> Path:
    header = list(rows[0])
    lines = [",".join(header), *(",".join(row[key] for key in header) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def rows_of(folder: Path, split: str) -> list[dict[str, str]]:
    paths = sorted((folder / split).rglob("*.png"))
    return [{"file": str(path.relative_to(folder)), "animal": path.parent.name, "weight": "3"} for path in paths]


COLUMNS = ColumnsConfig(image="file", label="animal")


@pytest.fixture
def tables(folder: Path, data: DataConfig) -> DataConfig:
    for split in COUNTS:
        table(folder, f"{split}.csv", rows_of(folder, split))
    return dataclasses.replace(data, files=("*.csv",), columns=COLUMNS)


def test_a_table_of_paths(data: DataConfig, tables: DataConfig) -> None:
    of_folder, of_table = load_source(data), load_source(tables)
    assert of_table.splits == of_folder.splits
    assert of_table.facts == of_folder.facts
    for split in of_folder.splits:
        for one, other in zip(of_folder.split(split), of_table.split(split), strict=True):
            assert one["label"] == other["label"]
            np.testing.assert_array_equal(one["image"], other["image"])


def test_json_lines_with_other_folders(tmp_path: Path, folder: Path, data: DataConfig) -> None:
    """Paths are relative to the table; absolute ones are taken as they are."""
    (folder / "lists").mkdir()
    for split in COUNTS:
        rows = [
            {
                "image": str(folder / row["file"]) if row["animal"] == "cat" else f"../{row['file']}",
                "label": row["animal"],
            }
            for row in rows_of(folder, split)
        ]
        (folder / "lists" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_source(dataclasses.replace(data, files=("lists/*.jsonl",)))
    assert [len(source.split(split)) for split in source.splits] == [12, 4, 6]
    assert source.split("test")[4]["image"].shape == picture("test", "cat", 1).shape


# --- Mistakes


def no_images(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "cat")
    (folder / "train" / "cat").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("x")


def no_folders(folder: Path) -> None:
    for path in list((folder / "train").rglob("*.png")):
        shutil.move(path, folder / "train" / f"{path.parent.name}{path.name}")
    for label in CLASSES:
        (folder / "train" / label).rmdir()


def stray(folder: Path) -> None:
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "train" / "cover.png")


def truncated(folder: Path) -> None:
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])


def only_in_test(folder: Path) -> None:
    save(folder / "test" / "dog" / "a.png", picture("test", "dog", 0))


def split_and_class(folder: Path) -> None:
    shutil.copytree(folder / "train" / "cat", folder / "cat")


def one_class(folder: Path) -> None:
    for split in COUNTS:
        shutil.rmtree(folder / split / "cat")


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no images": (no_images, r"own/train/cat holds no image \(\.png, .*\): add some, or remove the folder\."),
    "no folders": (
        no_folders,
        r"own/train holds no folder of classes: put each image into one, as .*/CLASS/bird0",
    ),
    "stray": (stray, r"own/train holds cover\.png beside the folders of classes: put each image into one, as"),
    "truncated": (truncated, r"own/train/cat/1\.png is an image that cannot be read \(.*\): save it again"),
    "class only in test": (only_in_test, r"own/test/dog has the class 'dog' in image 1, of which train has no example"),
    "split and class": (split_and_class, r"own has the folder train of a split and also cat: put the classes into tr"),
    "one class": (
        one_class,
        r"own/test/bird has one class only, 'bird': give examples of another",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_folders(case: str, folder: Path, data: DataConfig) -> None:
    change, message = MISTAKES[case]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_source(data)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_without_a_rule(folder: Path, data: DataConfig) -> None:
    data = dataclasses.replace(data, resize="")
    height, width = picture("train", "bird", 0).shape[:2]
    message = rf"own/train/bird/0\.png is {height} x {width}, and the model takes 8 x 6: set data\.resize to 'crop'"
    with pytest.raises(UserError, match=message):
        batches(data)


def test_images_of_one_size_need_no_rule(tmp_path: Path, data: DataConfig) -> None:
    for path in (tmp_path / "own").rglob("*.png"):
        save(path, fitted(read_image(path, 3), (8, 6), "squash"))
    made = batches(dataclasses.replace(data, resize=""), "test")
    expected = read_image(tmp_path / "own" / "test" / "bird" / "1.png", 3)
    mean, deviation = scale(load_source(data).facts, 3)
    np.testing.assert_allclose(next(made.evaluation())["inputs"][1], (expected / 255 - mean) / deviation, atol=1e-5)


def test_left_out_files_are_told(folder: Path, data: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train" / "cat" / "notes.txt").write_text("x")
    load_source(data)
    assert "1 file(s) in" in caplog.text
    assert "first notes.txt" in caplog.text


TABLE_MISTAKES: dict[str, tuple[int, str, str, str]] = {  # row, column, value
    "missing file": (
        2,
        "file",
        "train/bird/77.png",
        r"train\.csv names the image train/bird/77\.png in line 4, and",
    ),
    "no path": (3, "file", " ", r"train\.csv has no path in 'file' of line 5: add it, or take"),
    "no class": (3, "animal", "", r"train\.csv has no label in 'animal' of line 5, where a class belongs"),
}


@pytest.mark.parametrize("case", TABLE_MISTAKES)
def test_mistakes_in_tables(case: str, folder: Path, tables: DataConfig) -> None:
    place, column, value, message = TABLE_MISTAKES[case]
    rows = rows_of(folder, "train")
    rows[place][column] = value
    table(folder, "train.csv", rows)
    with pytest.raises(UserError, match=message) as caught:
        load_source(tables)
    assert "\n" not in str(caught.value)


def test_wrong_columns(tables: DataConfig) -> None:
    wrong = dataclasses.replace(tables, columns=ColumnsConfig(image="files", label="animal"))
    with pytest.raises(UserError, match=r"no column 'files', which data\.columns\.image names: did you mean 'file'"):
        load_source(wrong)
    with pytest.raises(UserError, match=r"has the columns file, animal, weight, and none is called image: name it in"):
        load_source(dataclasses.replace(tables, columns=ColumnsConfig()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dir": ""}, r"image_folder reads the folder data\.dir, .* and neither is set: name a folder"),
        ({"dir": "/nowhere"}, r"data\.dir=/nowhere is no folder: name the one that holds a folder for each class"),
        ({"files": ("x/*.png",)}, r"data\.files has 'x/\*\.png', and there is no such file"),
        ({"files": ("train=train", "test")}, r"data\.files has 'test' without a split and others with one"),
        ({"files": ("train", "t.csv")}, r"data\.files has the table .*t\.csv and also .*train: name tables, or images"),
    ],
    ids=["nothing", "no folder", "empty glob", "half", "both"],
)
def test_wrong_places(changes: dict[str, tuple[str, ...] | str], message: str, folder: Path, data: DataConfig) -> None:
    (folder / "t.csv").write_text("image,label\n")
    with pytest.raises(UserError, match=message):
        load_source(dataclasses.replace(data, **changes))  # type: ignore[arg-type]
