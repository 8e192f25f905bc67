"""Read the EXIF orientation of an image file, as Pillow's `getexif` does, and turn pixels upright."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from penstock.shard_tools.jpeg import Header

UPRIGHT = 1  # as the pixels are stored; 5 to 8 exchange height and width


def orientation_of(image: Image.Image) -> int:
    """The orientation, 1 to 8; 1 if it is missing, out of range, or unreadable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return int(value) if value in range(1, 9) else UPRIGHT
    except Exception:  # Pillow's parsers can raise anything, but damaged metadata does not affect the pixels
        return UPRIGHT


def jpeg_orientation(data: bytes, header: Header) -> int:
    """The orientation of a JPEG file. This takes 0.1 ms if the file has EXIF or XMP metadata, otherwise no time."""
    if not header.tagged:
        return UPRIGHT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                return orientation_of(image)
    except Exception:
        return UPRIGHT


def sides(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width after `upright`."""
    return (width, height) if orientation >= 5 else (height, width)


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels upright: (H, W, C) → (H, W, C) or (W, H, C), contiguous.

    Same result as `PIL.ImageOps.exif_transpose`. The orientation gives the position of the first row and column (TIFF
    6.0, tag Orientation); 5 to 8 exchange rows and columns.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
