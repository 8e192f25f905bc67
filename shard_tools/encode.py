"""Image file bytes → checked JPEG bytes with height and width.

Gray and colour JPEGs pass through untouched after every one of their coefficients has been decoded once. Everything
else that Pillow reads as PNG, WebP, BMP or CMYK JPEG becomes an RGB JPEG (quality 95, 4:4:4, no metadata), whatever
its file name says. Alpha is dropped, as torchvision's loader does.

The one rule for EXIF orientation: it is never applied, neither here nor when training. Height and width are those
of the stored pixels, as PIL and torchvision see them.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 178_956_970  # where Pillow suspects a decompression bomb; the largest ImageNet JPEG has about half
CHECKS = ("decode", "header")
SUBSAMPLINGS = ("420", "422", "444")
MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION

Image.MAX_IMAGE_PIXELS = None  # `encode` has its own limit, and reports it with the file's name


class BadImage(ValueError):
    """This file cannot be used; the message says why, without the file's name."""


@dataclass(frozen=True)
class EncodeConfig:
    """How images are checked, and which of them are re-encoded. The default passes JPEGs through untouched.

    check: "decode" entropy-decodes every image, "header" looks at its structure and size only.
    max_pixels: an image with more counts as bad.
    max_side, short_side: bounds in pixels for the longer and the shorter side, of which at most one is given; an image
        beyond it is scaled down, one within it is left alone. Nothing is ever enlarged.
    quality, subsampling: of the JPEGs that are written.
    reencode: write every image anew, at its size. baseline: write progressive JPEGs anew as baseline JPEGs.
    """

    check: Literal["decode", "header"] = "decode"
    max_pixels: int = MAX_PIXELS
    max_side: int | None = None
    short_side: int | None = None
    quality: int = 90
    subsampling: Literal["420", "422", "444"] = "420"
    reencode: bool = False
    baseline: bool = False

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"check is {self.check!r}; it can be {', '.join(CHECKS)}")
        if self.subsampling not in SUBSAMPLINGS:
            raise ValueError(f"subsampling is {self.subsampling!r}; it can be {', '.join(SUBSAMPLINGS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it goes from 1 to 100")
        if self.max_side and self.short_side:
            raise ValueError("max_side and short_side are both given; choose one")
        for name in ("max_pixels", "max_side", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class Encoded:
    """A JPEG file, its size in pixels, and what it was made from ("jpeg" if untouched, else e.g. "png", "cmyk")."""

    jpeg: bytes
    height: int
    width: int
    kind: str


def encode(data: bytes, config: EncodeConfig = EncodeConfig()) -> Encoded:
    """Check one image file and make it a JPEG where it is none.

    Raises:
        BadImage: it is empty, no image, of another format, truncated, animated, or has more than `max_pixels` pixels.
    """
    if not data:
        raise BadImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF blocks and the like do not concern the pixels
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _encode(image, data, config.max_pixels)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not a JPEG, PNG, WebP or BMP image (starts with {data[:8]!r})") from None
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise BadImage(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    except (Image.DecompressionBombError, MemoryError, struct.error, zlib.error) as error:
        raise BadImage(f"{type(error).__name__}: {error}") from None


def _encode(image: Image.Image, data: bytes, max_pixels: int) -> Encoded:
    width, height = image.size
    if width * height == 0:
        raise BadImage(f"has no pixels ({width}×{height})")
    if width * height > max_pixels:
        raise BadImage(f"has {width}×{height} pixels, more than --max-pixels {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise BadImage(f"has {width}×{height} pixels; a JPEG has at most {MAX_SIDE} a side")
    kind = (image.format or "").lower()
    if kind in ("jpeg", "mpo"):  # MPO: a JPEG followed by more pictures, which every JPEG decoder leaves alone
        if image.mode in ("L", "RGB"):
            # At 1/8 scale libjpeg entropy-decodes all that it does at full scale, which is where a broken file shows,
            # and saves the rest: 1.4 times faster on ImageNet, with the same verdicts (tested).
            image.draft("YCbCr" if image.mode == "RGB" else "L", (max(1, width // 8), max(1, height // 8)))
            image.load()
            return Encoded(data, height, width, "jpeg")
        kind = image.mode.lower()
    elif getattr(image, "n_frames", 1) > 1:
        raise BadImage(f"animated {kind} with {getattr(image, 'n_frames', 1)} frames")
    buffer = io.BytesIO()
    _rgb(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return Encoded(buffer.getvalue(), height, width, kind)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB without metadata. 16-bit gray keeps its high byte, as 16-bit colour does in Pillow."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    rgb = image.convert("RGB")
    rgb.info.clear()  # Pillow would write a comment found here into the JPEG
    return rgb
