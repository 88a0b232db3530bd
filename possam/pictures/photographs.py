"""Photographs as upright RGB arrays, whatever file or array they come from."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from possam.datasets.pixels import open_image
from possam.runtime.errors import InputError
from possam.runtime.reading import reading


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """Read any photograph as RGB (H,W,3) uint8, turned upright as its EXIF data says.

    16-bit grey is scaled to 8 bits, CMYK converted, and transparency laid over white.

    Raises:
        InputError: cannot be read, not an image, truncated, of more than 250 megapixels, or of a
            mode without colours.
    """
    with reading(path):
        content = path.read_bytes()
    with open_image(content, path, remedy="save it again as PNG or JPEG") as image:
        return upright(image, str(path))


def upright(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """As :func:`read_photograph`, of an image that is open; ``where``: its name in messages."""
    return np.array(_as_rgb(ImageOps.exif_transpose(image), where))


def shrink(pixels: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """RGB (H,W,3) uint8, reduced to a longer side of at most ``most`` pixels."""
    height, width = pixels.shape[:2]
    share = most / max(height, width)
    if share >= 1:
        return pixels
    size = (max(1, round(width * share)), max(1, round(height * share)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    return np.array(small)


def _as_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode.startswith("I"):
        deep = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise InputError(f"{where}: floating-point pixels have no known range; save it as 8 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")
