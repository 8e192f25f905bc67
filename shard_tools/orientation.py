"""EXIF orientation: an image file → how its pixels lie, as Pillow's `getexif` reads it; pixels → the same, upright."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from penstock.shard_tools.jpeg import Header

UPRIGHT = 1  # as the pixels are stored; 5 to 8 exchange height and width


def orientation_of(image: Image.Image) -> int:
    """1 to 8; 1 also where there is none, another number, or metadata that cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return int(value) if value in range(1, 9) else UPRIGHT
    except Exception:  # whatever Pillow's parsers run into: metadata do not concern the pixels
        return UPRIGHT


def jpeg_orientation(data: bytes, header: Header) -> int:
    """The same of a JPEG file; 0.1 ms for one that has EXIF or XMP metadata, nothing for others."""
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
    """(H, W, C) → the same pixels as they are to be seen, (H, W, C) or (W, H, C), contiguous.

    As `PIL.ImageOps.exif_transpose`. An orientation says where the first row and the first column lie (TIFF 6.0, tag
    Orientation): 5 to 8 exchange rows and columns.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
