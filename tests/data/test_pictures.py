"""Image files as they are seen, and fitted to a size: closed forms, and Pillow step by step."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transformer.data.sources.pictures import fitted, read_image
from transformer.errors import UserError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 4, 3)).astype(np.uint8)
GREY = RANDOM.integers(0, 256, (6, 4, 1)).astype(np.uint8)
OPACITY = np.array([255, 255, 0, 255] * 6, np.uint8).reshape(6, 4, 1)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def saved(folder: Path, image: Image.Image, **options: Any) -> Path:
    image.save(folder / "a.png", **options)
    return folder / "a.png"


def on_white(pixels: np.ndarray) -> np.ndarray:
    return np.where(OPACITY == 0, 255, pixels)


SEEN: dict[str, tuple[Image.Image, int, np.ndarray]] = {
    "colours": (Image.fromarray(RGB), 3, RGB),
    "grey": (Image.fromarray(GREY[..., 0]), 1, GREY),
    "grey as colours": (Image.fromarray(GREY[..., 0]), 3, GREY.repeat(3, -1)),
    "palette": (Image.fromarray(RGB).quantize(kmeans=24), 3, RGB),
    "black and white": (Image.fromarray(GREY[..., 0] > 99), 1, (GREY > 99) * np.uint8(255)),
    "opacity": (Image.fromarray(np.concatenate([RGB, OPACITY], -1)), 4, np.concatenate([RGB, OPACITY], -1)),
    "opacity as colours": (Image.fromarray(np.concatenate([RGB, OPACITY], -1)), 3, on_white(RGB)),
    "grey with opacity": (Image.fromarray(np.concatenate([GREY, OPACITY], -1)), 1, on_white(GREY)),
}


@pytest.mark.parametrize("case", SEEN)
def test_images_are_read_as_they_are_seen(case: str, tmp_path: Path) -> None:
    image, channels, expected = SEEN[case]
    found = read_image(saved(tmp_path, image), channels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    found = read_image(saved(tmp_path, image, transparency=1), 3)
    assert found.tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [10, 20, 30]]]


def test_upright_by_exif(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(RGB), exif=TURNED), 3), np.rot90(RGB, -1))


def test_the_inks_of_cmyk_are_the_colours_of_paper(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), (200, 30, 60), np.uint8)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg", 3).astype(int) - (200, 30, 60)).max() < 4


def content(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


LARGE = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3)).astype(np.uint8))
DEEP = Image.fromarray(GREY[..., 0].astype(np.uint16) * 257)
BAD = {
    "cut off": (content(Image.fromarray(RGB))[:-40], "is an image that cannot be read (image file is truncated"),
    "JPEG, cut off": (content(LARGE, "JPEG")[:-900], "is an image that cannot be read (image file is truncated"),
    "no image": (b"<html>", "is an image that cannot be read (cannot identify image file): save it again as PNG or JP"),
    "empty": (b"", "is an image that cannot be read ("),
    "16 bits": (content(DEEP), "is an image of I;16 pixels, not of 8 bits: save it again as PNG or JPEG with 8 bits."),
}


@pytest.mark.parametrize("case", BAD)
def test_images_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    damaged, message = BAD[case]
    (tmp_path / "cat.png").write_bytes(damaged)
    with pytest.raises(UserError, match=re.escape(f"cat.png {message}")) as caught:
        read_image(tmp_path / "cat.png", 3)
    assert "\n" not in str(caught.value)


def test_channels_that_no_image_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.channels=2, and images have 1 \(grey\), 3"):
        read_image(saved(tmp_path, Image.fromarray(RGB)), 2)


# --- Sizes


@pytest.mark.parametrize("rule", ["", "crop", "squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_of_the_size_is_unchanged(rule: str, channels: int) -> None:
    pixels = RANDOM.integers(0, 256, (5, 7, channels)).astype(np.uint8)
    np.testing.assert_array_equal(fitted(pixels, (5, 7), rule), pixels)


@given(
    st.sampled_from(["crop", "squash", "pad"]),
    st.sampled_from([1, 3, 4]),
    st.tuples(*[st.integers(1, 40)] * 4),
    st.integers(0, 255),
)
def test_an_even_image_stays_even_at_any_size(rule: str, channels: int, sides: tuple[int, ...], grey: int) -> None:
    """Whatever is scaled, a constant is that constant; what "pad" adds is 0, and touches two opposite sides at most."""
    height, width, *size = sides
    pixels = np.full((height, width, channels), grey, np.uint8)
    if channels == 4:
        pixels[..., 3] = 255
    found = fitted(pixels, size, rule)
    assert (found.shape, found.dtype) == ((*size, channels), np.uint8)
    same = (found == pixels[0, 0]).all(-1)
    if rule != "pad":
        assert same.all()
    else:
        inner = same[np.ix_(same.any(1), same.any(0))]
        assert inner.all()
        assert size[0] in inner.shape[:1] or size[1] in inner.shape[1:]
        assert not found[~same].any()


@pytest.mark.parametrize(("height", "width", "size"), [(32, 16, (8, 8)), (16, 48, (8, 8)), (40, 40, (8, 4))])
def test_crop_is_the_shorter_side_scaled_and_the_centre_cut(height: int, width: int, size: tuple[int, int]) -> None:
    """As torchvision's Resize and CenterCrop do, in Pillow: the scaled image, of which the middle is left."""
    pixels = RANDOM.integers(0, 256, (height, width, 3)).astype(np.uint8)
    scale = max(size[0] / height, size[1] / width)
    whole = (round(height * scale), round(width * scale))
    scaled = Image.fromarray(pixels).resize((whole[1], whole[0]), Image.Resampling.BILINEAR)
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    expected = np.array(scaled)[top : top + size[0], left : left + size[1]]
    assert np.abs(fitted(pixels, size, "crop").astype(int) - expected).max() <= 1  # Pillow rounds after each side


def test_squash_keeps_everything_and_pad_the_shape() -> None:
    pixels = RANDOM.integers(0, 256, (20, 10, 1)).astype(np.uint8)
    expected = np.array(Image.fromarray(pixels[..., 0]).resize((6, 6), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fitted(pixels, (6, 6), "squash")[..., 0], expected)
    narrow = np.array(Image.fromarray(pixels[..., 0]).resize((4, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fitted(pixels, (8, 8), "pad")[..., 0], np.pad(narrow, ((0, 0), (2, 2))))


def test_smaller_is_the_mean_of_what_was_there() -> None:
    """A checkerboard of single pixels is grey when it is smaller: without averaging it would be black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    for rule in ("crop", "squash", "pad"):
        assert np.abs(fitted(board, (8, 8), rule).astype(int) - 127.5).max() < 8


def test_what_is_scaled_stays_where_it_was() -> None:
    small = RANDOM.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    large = small.repeat(16, 0).repeat(16, 1)
    found = fitted(large, (4, 4), "crop").astype(int)
    # Bilinear averaging reaches half a block into the neighbours: 3/4 of the weight is on the block itself.
    weights = np.array([[6, 1, 0, 0], [1, 6, 1, 0], [0, 1, 6, 1], [0, 0, 1, 6]])
    weights = weights / weights.sum(1, keepdims=True)
    expected = np.einsum("ij,jkc,lk->ilc", weights, small.astype(float), weights)
    assert np.abs(found - expected).max() < 1.5


def test_another_size_without_a_rule() -> None:
    message = r"x/cat\.png is 5 x 7, and the model takes 8 x 8: set data\.resize to 'crop', .*image_size=\(5, 7\)\."
    with pytest.raises(UserError, match=message):
        fitted(np.zeros((5, 7, 3), np.uint8), (8, 8), "", "x/cat.png")
