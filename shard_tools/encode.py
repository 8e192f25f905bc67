"""Image file bytes → checked JPEG bytes with height and width.

Gray and colour JPEGs pass through untouched, unless `EncodeConfig` asks for another size or encoding; by default every
one of their coefficients is decoded once. Everything else that Pillow reads as PNG, WebP, BMP, PPM or CMYK JPEG becomes
an RGB JPEG, whatever its file name says: alpha is dropped, as torchvision's loader does, 16 bits lose their low byte.
CMYK is read as Adobe stores it, inverted, with its marker or without, as Pillow and torchvision do and DALI does not.
A gray JPEG stays gray when it is written anew, a gray PNG becomes RGB; decoders give both as three equal channels.

The one rule for EXIF orientation: training never applies it, and packing only if `EncodeConfig` asks for it. Height and
width are those of the stored pixels, as PIL and torchvision see them. JPEGs that are written carry no metadata at all.

`pixels_of` decodes what comes out, for images that are stored as pixels.
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
SIGNATURES = {SOI: "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}  # how files begin; less than that tells no format
Check = Literal["decode", "header"]
Subsampling = Literal["420", "422", "444"]
CHECKS, SUBSAMPLINGS = get_args(Check), get_args(Subsampling)
MAX_PIXELS = 178_956_970  # where Pillow suspects a decompression bomb; the largest ImageNet JPEG has about half
MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
MAX_PIXEL_BYTES = (1 << 32) - 64  # a table's sizes are u4; with the member's header
CONVERTED_QUALITY, CONVERTED_SUBSAMPLING = 95, "444"

Image.MAX_IMAGE_PIXELS = None  # `encode` has its own limit, and reports it with the file's name


class BadImage(ValueError):
    """This file cannot be used; the message says why, without the file's name."""


def parse_share(text: str) -> float:
    """Raises ValueError for what is no number from 0 to 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--pixels: {text!r} is no share of the images; write a number from 0 to 1")
    return share


@dataclass(frozen=True)
class EncodeConfig:
    """How images are checked, and which of them are written anew. The default passes JPEGs through untouched.

    check: "decode" entropy-decodes every JPEG, "header" looks at its structure and size only; what is written anew is
        decoded either way.
    max_pixels: an image with more counts as bad.
    max_side, short_side: bounds in pixels for the longer and the shorter side, of which at most one is given; an image
        beyond it is scaled down, one within it is left alone. Nothing is ever enlarged.
    quality, subsampling: of the JPEGs that are scaled or re-encoded. What is only converted (PNG and the like) gets
        quality 95 and 4:4:4, so that the conversion costs nothing visible.
    reencode: write every image anew, at its size. baseline: write progressive JPEGs anew as baseline JPEGs.
    apply_orientation: turn the pixels where EXIF's orientation is not 1; if that is all, quality 95 and 4:4:4 as well.
    pixels: the share of a split's images that is stored as the pixels of its JPEGs. Which ones, `shard` chooses.
    """

    check: Annotated[Check, Option("How JPEGs are checked.", choices=CHECKS, shown=True)] = "decode"
    max_pixels: Annotated[int, Option("More make an image bad.", least=1, shown=True)] = MAX_PIXELS
    max_side: Annotated[int | None, Option("Scale images down to this longer side, in pixels.", least=1)] = None
    short_side: Annotated[int | None, Option("Scale images down to this shorter side.", least=1)] = None
    quality: Annotated[int, Option("Of JPEGs written anew.  [default: 90]", least=1, most=100)] = 90
    subsampling: Annotated[Subsampling, Option("Of JPEGs written anew.  [default: 420]", choices=SUBSAMPLINGS)] = "420"
    reencode: Annotated[bool, Option("Write every image anew at its size.")] = False
    baseline: Annotated[bool, Option("Write progressive JPEGs anew, as hardware decoders want them.")] = False
    apply_orientation: Annotated[bool, Option("Turn images as their EXIF orientation says.")] = False
    pixels: Annotated[
        float,
        Option(
            "Share of the images, 0 to 1, stored as uncompressed pixels (PPM): fast to load, several times as large.",
            metavar="FRACTION",
            kind=parse_share,
            shown="0",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"check is {self.check!r}; it can be {', '.join(CHECKS)}")
        if self.subsampling not in SUBSAMPLINGS:
            raise ValueError(f"subsampling is {self.subsampling!r}; it can be {', '.join(SUBSAMPLINGS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it goes from 1 to 100")
        if not 0 <= self.pixels <= 1:
            raise ValueError(f"pixels is {self.pixels}; it goes from 0 to 1")
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

    kind: "jpeg" if untouched; else "oriented" for what was turned, "png", "webp", "bmp", "ppm", "cmyk" or "odd-jpeg"
        for what had to be converted, and "resized", "progressive" or "reencoded" for a JPEG written anew for that
        reason.
    unturned: it has an EXIF orientation other than 1, which was not applied.
    """

    jpeg: bytes
    height: int
    width: int
    kind: str
    unturned: bool = False


def encode(data: bytes, config: EncodeConfig = EncodeConfig()) -> Encoded:
    """Check one image file and make it the JPEG that `config` asks for.

    Raises:
        BadImage: it is empty, no image, of another format, truncated, damaged, animated, or has more than
            `config.max_pixels` pixels.
    """
    try:
        return _encode(data, config)
    except Exception as error:
        raise BadImage(reason(data, error)) from None


def reason(data: bytes, error: Exception) -> str:
    """Why a file cannot be used, in one line: our words, Pillow's or libjpeg's; an error nobody foresaw has its type.

    Whatever it is, it is this image's: the others must not suffer for it.
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
    """What decoding a stored JPEG gives: (height, width, 3) uint8, RGB; gray becomes three equal channels.

    To the bit what Pillow and DALI's CPU decoder give: all are libjpeg-turbo, with its accurate DCT and smooth
    upsampling.

    Raises:
        BadImage: it is damaged, which `check="header"` has not seen; or the pixels are more than a table can say.
    """
    height, width = encoded.height, encoded.width
    if 3 * height * width > MAX_PIXEL_BYTES:
        raise BadImage(f"has {width}×{height} pixels, too many for --pixels: they take more than 4 GiB")
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
    # as Pillow's `draft`: the DCT does the powers of two, which costs nothing and reads less
    scale = next(s for s in SCALES if all(n >= s * m for n, m in zip(old, new, strict=True)))
    return _write(decode(data, header, scale), new, kind, orientation, config, asked=kind != "oriented")


def _from_other(data: bytes, header: Header | None, config: EncodeConfig) -> Encoded:
    """By way of Pillow: what is no JPEG, CMYK and YCCK, and JPEGs that not every decoder takes.

    In a JPEG whose sampling TurboJPEG does not name, Pillow sees that it is cut short, but no other damage.
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
                raise BadImage("a PFM, whose values are fractions; convert it first")
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
        raise BadImage(f"has {width}×{height} pixels, more than packing takes (--max-pixels {config.max_pixels})")
    if max(width, height) > MAX_SIDE:
        raise BadImage(f"has {width}×{height} pixels; a JPEG has at most {MAX_SIDE} a side")


def _write(
    pixels: NDArray[np.uint8], size: tuple[int, int], kind: str, orientation: int, config: EncodeConfig, asked: bool
) -> Encoded:
    """`pixels`: (height, width, 1 gray or 4 RGBX) uint8 as they lie in the file; `size`: theirs, or a smaller one.

    asked: the user wants it smaller or re-encoded, at the quality that goes with that; else it is only converted.
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
