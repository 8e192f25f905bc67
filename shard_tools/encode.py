"""Check an image file and turn it into JPEG bytes with height and width.

Gray and colour JPEGs pass through untouched, unless `EncodeConfig` requests another size or encoding. By default, all
their coefficients are decoded once as a check. Everything else that Pillow reads as PNG, WebP, BMP, PPM or CMYK JPEG
becomes an RGB JPEG, whatever its file name: alpha is dropped, as in torchvision's loader, and 16 bits lose their low
byte. CMYK is read inverted, as Adobe stores it, with or without Adobe's marker. Pillow and torchvision do the same, but
DALI does not. A gray JPEG stays gray when it is re-encoded. A gray PNG becomes RGB. Decoders return both as three equal
channels.

EXIF orientation follows one rule: training never applies it, and packing applies it only if `EncodeConfig` requests it.
Height and width are those of the stored pixels, as in PIL and torchvision. Re-encoded JPEGs carry no metadata.

`pixels_of` decodes the resulting JPEG, for images that are stored as pixels.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from penstock.shard_tools.jpeg import (
    SCALES,
    SOI,
    Header,
    check_odd,
    check_pixels,
    decode,
    has_end,
    read_header,
    why_not,
)
from penstock.shard_tools.option import Option
from penstock.shard_tools.orientation import UPRIGHT, jpeg_orientation, orientation_of, sides, upright
from penstock.shard_tools.resize import resize

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
SIGNATURES = {SOI: "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}  # the first bytes that identify a format
Check = Literal["decode", "header"]
Subsampling = Literal["420", "422", "444"]
CHECKS, SUBSAMPLINGS = get_args(Check), get_args(Subsampling)
MAX_PIXELS = 178_956_970  # Pillow's limit for decompression bombs; the largest ImageNet JPEG has about half as many
MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
MAX_PIXEL_BYTES = (1 << 32) - 64  # a table's sizes are u4 and include the PPM header
CONVERTED_QUALITY, CONVERTED_SUBSAMPLING = 95, "444"

Image.MAX_IMAGE_PIXELS = None  # `encode` has its own limit, and reports it with the file's name


class BadImage(ValueError):
    """A file cannot be used; the message gives the reason, without the file's name."""


def parse_share(text: str) -> float:
    """Parse a number from 0 to 1. Raises ValueError for anything else."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--pixels: {text!r} is not a share of the images; write a number from 0 to 1")
    return share


@dataclass(frozen=True)
class EncodeConfig:
    """How images are checked, and which of them are re-encoded. The default passes JPEGs through untouched.

    check: "decode" entropy-decodes every JPEG, "header" looks only at its structure and size. Images that are
        re-encoded are decoded in both cases.
    max_pixels: an image with more pixels counts as bad.
    max_side, short_side: limits in pixels for the longer and the shorter side; at most one may be given. A larger image
        is scaled down, a smaller one stays as it is. No image is ever enlarged.
    quality, subsampling: for JPEGs that are scaled or re-encoded. Images that are only converted (PNG and the like) get
        quality 95 and 4:4:4, so the conversion causes no visible loss.
    reencode: re-encode every image at its size. baseline: re-encode progressive JPEGs as baseline JPEGs.
    apply_orientation: rotate and flip the pixels if EXIF's orientation is not 1. An image that needs nothing else also
        gets quality 95 and 4:4:4.
    pixels: the share of a split's images to store as decoded pixels. `shard` chooses which ones.
    """

    check: Annotated[
        Check, Option("How to check JPEGs: decode them, or read the header only.", choices=CHECKS, shown=True)
    ] = "decode"
    max_pixels: Annotated[int, Option("Reject images with more pixels than this.", least=1, shown=True)] = MAX_PIXELS
    max_side: Annotated[
        int | None, Option("Scale larger images down so that the longer side has this many pixels.", least=1)
    ] = None
    short_side: Annotated[
        int | None, Option("Scale larger images down so that the shorter side has this many pixels.", least=1)
    ] = None
    quality: Annotated[int, Option("Quality of re-encoded JPEGs.  [default: 90]", least=1, most=100)] = 90
    subsampling: Annotated[
        Subsampling, Option("Chroma subsampling of re-encoded JPEGs.  [default: 420]", choices=SUBSAMPLINGS)
    ] = "420"
    reencode: Annotated[bool, Option("Re-encode every image, keeping its size.")] = False
    baseline: Annotated[bool, Option("Re-encode progressive JPEGs as baseline, for hardware decoders.")] = False
    apply_orientation: Annotated[bool, Option("Rotate and flip images as their EXIF orientation says.")] = False
    pixels: Annotated[
        float,
        Option(
            "Share of the images, 0 to 1, to store as uncompressed pixels (PPM): fast to load, but several times "
            "larger.",
            metavar="FRACTION",
            kind=parse_share,
            shown="0",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"check is {self.check!r}; use one of {', '.join(CHECKS)}")
        if self.subsampling not in SUBSAMPLINGS:
            raise ValueError(f"subsampling is {self.subsampling!r}; use one of {', '.join(SUBSAMPLINGS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be from 1 to 100")
        if not 0 <= self.pixels <= 1:
            raise ValueError(f"pixels is {self.pixels}; it must be from 0 to 1")
        if self.max_side and self.short_side:
            raise ValueError("max_side and short_side are both given; choose one")
        for name in ("max_pixels", "max_side", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image of this size is stored with."""
        side = max(height, width) if self.max_side else min(height, width)
        bound = self.max_side or self.short_side or side
        if side <= bound:
            return height, width
        return max(1, (height * bound + side // 2) // side), max(1, (width * bound + side // 2) // side)


@dataclass(frozen=True)
class Encoded:
    """A JPEG file, its size in pixels, and what it was made from.

    kind: "jpeg" if untouched, "oriented" if the orientation was applied, "png", "webp", "bmp", "ppm", "cmyk" or
        "odd-jpeg" if the image had to be converted, and "resized", "progressive" or "reencoded" if a JPEG was
        re-encoded for that reason.
    unturned: the image has an EXIF orientation other than 1 that was not applied.
    """

    jpeg: bytes
    height: int
    width: int
    kind: str
    unturned: bool = False


def encode(data: bytes, config: EncodeConfig = EncodeConfig()) -> Encoded:
    """Check one image file and turn it into the JPEG that `config` requests.

    Raises:
        BadImage: the file is empty, not an image, of an unsupported format, truncated, damaged, animated, or has more
            than `config.max_pixels` pixels.
    """
    try:
        return _encode(data, config)
    except Exception as error:
        raise BadImage(reason(data, error)) from None


def reason(data: bytes, error: Exception) -> str:
    """Why a file cannot be used, in one line: our own message, Pillow's or libjpeg's.

    An unexpected error shows its type. Any error concerns only this image, so packing can continue with the others.
    """
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, BadImage):
        return said
    if not data:
        return "empty file"
    if data.startswith(SOI) and isinstance(error, OSError | SyntaxError) and (unusual := why_not(data)):
        return unusual
    if isinstance(error, UnidentifiedImageError):
        named = next((name for start, name in SIGNATURES.items() if data.startswith(start)), "")
        unlike = f"not a JPEG, PNG, WebP, BMP or PPM image (starts with {data[:12]!r})"
        return f"a {named} with a damaged header" if named else unlike
    return (
        said if isinstance(error, OSError | ValueError | SyntaxError | EOFError) else f"{type(error).__name__}: {said}"
    )


def pixels_of(encoded: Encoded) -> NDArray[np.uint8]:
    """Decode a stored JPEG: (height, width, 3) uint8, RGB; gray becomes three equal channels.

    The result is bit-identical to Pillow's and to DALI's CPU decoder's: all use libjpeg-turbo with the accurate DCT and
    smooth upsampling.

    Raises:
        BadImage: the image is damaged (`check="header"` does not detect that), or its pixels need more than 4 GiB.
    """
    height, width = encoded.height, encoded.width
    if 3 * height * width > MAX_PIXEL_BYTES:
        raise BadImage(f"has {width}×{height} pixels, too many for --pixels: they need more than 4 GiB")
    header = read_header(encoded.jpeg)
    assert header is not None, "`encode` gives what every decoder reads"
    try:
        pixels = decode(encoded.jpeg, header)
    except ValueError as error:
        raise BadImage(reason(encoded.jpeg, error)) from None
    return np.broadcast_to(pixels[..., :3], (height, width, 3))


def _encode(data: bytes, config: EncodeConfig) -> Encoded:
    header = read_header(data)
    if header is None or header.components == 4:
        return _from_other(data, header, config)
    try:
        return _from_jpeg(data, header, config)
    except BadImage:
        raise
    except ValueError as error:
        cut = "truncated: " if not has_end(data, header) else ""
        raise BadImage(f"{cut}{error}") from None


def _from_jpeg(data: bytes, header: Header, config: EncodeConfig) -> Encoded:
    old = header.height, header.width
    _check_size(*old, config)
    orientation = jpeg_orientation(data, header)
    new = config.size(*old)
    if new != old:
        kind = "resized"
    elif config.baseline and header.progressive:
        kind = "progressive"
    elif config.reencode:
        kind = "reencoded"
    elif config.apply_orientation and orientation != UPRIGHT:
        kind = "oriented"
    else:
        if config.check == "decode" or not has_end(data, header):
            check_pixels(data, header)
        return Encoded(data, *old, "jpeg", orientation != UPRIGHT)
    # like Pillow's `draft`: the DCT scales by powers of two at no cost, and less data remains to be resized
    scale = next(s for s in SCALES if all(n >= s * m for n, m in zip(old, new, strict=True)))
    return _write(decode(data, header, scale), new, kind, orientation, config, asked=kind != "oriented")


def _from_other(data: bytes, header: Header | None, config: EncodeConfig) -> Encoded:
    """Convert with Pillow: other formats, CMYK and YCCK JPEGs, and JPEGs that some decoders reject.

    If TurboJPEG lacks the sampling of a JPEG, Pillow detects that the file is truncated, but no other damage.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF blocks and the like do not concern the pixels
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            _check_size(height, width, config)
            kind = (image.format or "").lower()
            if data.startswith(SOI):
                kind = "cmyk" if image.mode == "CMYK" else "odd-jpeg"
                if header is not None:
                    check_pixels(data, header)
                else:
                    check_odd(data)
            elif image.mode == "F":
                raise BadImage("a PFM with floating-point values; convert it first")
            elif getattr(image, "n_frames", 1) > 1:
                raise BadImage(f"animated {kind} with {getattr(image, 'n_frames', 1)} frames")
            pixels = np.array(_rgb(image).convert("RGBX"))
            orientation = orientation_of(image)
    new = config.size(height, width)
    return _write(pixels, new, kind, orientation, config, asked=new != (height, width) or config.reencode)


def _check_size(height: int, width: int, config: EncodeConfig) -> None:
    if width * height == 0:
        raise BadImage(f"has no pixels ({width}×{height})")
    if width * height > config.max_pixels:
        raise BadImage(f"has {width}×{height} pixels, more than --max-pixels {config.max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise BadImage(f"has {width}×{height} pixels; a side of a JPEG can have at most {MAX_SIDE}")


def _write(
    pixels: NDArray[np.uint8], size: tuple[int, int], kind: str, orientation: int, config: EncodeConfig, asked: bool
) -> Encoded:
    """Write a JPEG of `size`, which is the size of the pixels or smaller.

    pixels: (height, width, 1 gray or 4 RGBX) uint8, as stored in the file. asked: the user requested scaling or
        re-encoding, so `config` sets the quality; otherwise the image is only converted.
    """
    import simplejpeg  # type: ignore[import-untyped]  # here: training on packed shards never needs it

    turned = config.apply_orientation and orientation != UPRIGHT
    if turned:
        pixels, size, kind = upright(pixels, orientation), sides(*size, orientation), "oriented"
    if pixels.shape[:2] != size:
        pixels = resize(pixels, *size)
    quality = config.quality if asked else CONVERTED_QUALITY
    subsampling = config.subsampling if asked else CONVERTED_SUBSAMPLING
    colours, subsampling = ("gray", "gray") if pixels.shape[2] == 1 else ("rgbx", subsampling)
    jpeg = simplejpeg.encode_jpeg(pixels, quality, colours, subsampling)
    return Encoded(jpeg, *size, kind, orientation != UPRIGHT and not turned)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB. 16-bit gray keeps its high byte, as 16-bit colour does in Pillow."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
