"""Reads image files of any format, as they are seen, and fits them to the size of a model."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from transformer.data.sources.files import read_bytes
from transformer.errors import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's name
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")


def upright(content: bytes, named: str, remedy: str) -> PIL.Image.Image:
    """The decoded image of a file, turned as its EXIF says. UserErrors: it cannot be read or has more than 8 bits;
    `named` begins the sentence, and `remedy` ends it."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as opened:
            image = PIL.ImageOps.exif_transpose(opened)
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything for a damaged file
        reason = str(error).partition(" <")[0]
        raise UserError(f"{named} that cannot be read ({reason}): {remedy}.") from error
    if image.mode[0] in "IF":
        raise UserError(f"{named} of {image.mode} pixels, not of 8 bits: {remedy} with 8 bits.")
    return image


def read_image(path: Path, channels: int) -> np.ndarray:
    """The pixels of an image file, uint8 [H, W, C], C = `channels`: 1 (grey), 3 (red, green, blue) or 4 (with opacity).

    It is upright by its EXIF; palettes and CMYK become the colours that are seen; black and white are 0 and 255; what
    is transparent is seen on white, unless there are four channels. UserErrors: the file cannot be read, is cut off or
    has 16 bits a channel; another number of channels.
    """
    if channels not in MODES:
        raise UserError(f"model.channels={channels}, and images have 1 (grey), 3 (colours) or 4 (with opacity).")
    image = _seen(_opened(path), channels)
    return np.array(image).reshape(image.height, image.width, channels)


def histograms(path: Path) -> dict[int, np.ndarray]:
    """How often each value is in each channel of an image file, for every number of channels C that `read_image` takes:
    C -> int64 [C, 256]. UserErrors: see `read_image`."""
    image = _opened(path)
    return {count: np.array(_seen(image, count).histogram(), np.int64).reshape(count, 256) for count in MODES}


def _opened(path: Path) -> PIL.Image.Image:
    return upright(read_bytes(path), f"{path} is an image", "save it again as PNG or JPEG")


def _seen(image: PIL.Image.Image, channels: int) -> PIL.Image.Image:
    """The image in so many channels."""
    if channels < 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert(MODES[channels])


def fitted(pixels: np.ndarray, size: Sequence[int], rule: str, named: str = "An image") -> np.ndarray:
    """Pixels [H, W, C] uint8 scaled to `size`, (height, width), by Pillow's bilinear filter, which averages where it
    makes them smaller; unchanged where they have that size. `rule`, of `data.resize`:

    * "crop": the largest part from the centre that has the shape of `size`, scaled;
    * "squash": height and width scaled, each by its own factor;
    * "pad": scaled until it fits, in the centre of zeros;
    * "": UserError, which begins with `named`.
    """
    height, width = pixels.shape[:2]
    if (height, width) == tuple(size):
        return pixels
    if not rule:
        raise UserError(
            f"{named} is {height} x {width}, and the model takes {size[0]} x {size[1]}: set data.resize to 'crop', "
            f"'squash' or 'pad', or model.image_size={(height, width)}."
        )
    if rule == "squash":
        return _scaled(pixels, size)
    if rule == "crop":
        scale = min(height / size[0], width / size[1])
        top, left = (height - scale * size[0]) / 2, (width - scale * size[1]) / 2
        box = (max(0.0, left), max(0.0, top), min(width, width - left), min(height, height - top))
        return _scaled(pixels, size, box)
    scale = min(size[0] / height, size[1] / width)
    inner = [max(1, round(side * scale)) for side in (height, width)]
    made = np.zeros((*size, pixels.shape[2]), np.uint8)
    top, left = ((outer - own) // 2 for outer, own in zip(size, inner, strict=True))
    made[top : top + inner[0], left : left + inner[1]] = _scaled(pixels, inner)
    return made


def _scaled(
    pixels: np.ndarray, size: Sequence[int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of the pixels at a size (height, width)."""
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    image = PIL.Image.fromarray(flat).resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR, box=box)
    return np.array(image).reshape(*size, pixels.shape[2])
