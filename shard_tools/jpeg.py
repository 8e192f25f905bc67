"""Read JPEG files: parse the header, check the coefficients, or decode the pixels. simplejpeg wraps libjpeg-turbo.

libjpeg continues after most kinds of damage and only warns. Here, a warning is an error if pixels are lost or invented
(missing data, a bad Huffman code, a restart marker out of order). Other warnings are ignored: superfluous bytes before
the end marker, and anything that concerns only metadata.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
STANDALONE = range(0xD0, 0xDA)  # RSTn, SOI, EOI: markers without a length
BASELINE, EXTENDED, PROGRESSIVE, DHT, SOS, APP1 = 0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xE1
METADATA = (*range(0xE0, 0xF0), 0xFE)  # APPn, COM
FRAMES = {*range(0xC0, 0xD0)} - {DHT, 0xC8, 0xCC}  # SOFn; the others define tables or are reserved
LOSSLESS, HIERARCHICAL = (0xC3, 0xCB), (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)
# Factors of luma and of both chroma components: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1, and two of them written differently
SAMPLINGS = {(0x11, 0x11), (0x21, 0x11), (0x22, 0x11), (0x12, 0x11), (0x41, 0x11), (0x22, 0x12), (0x22, 0x21)}
SAMPLINGS |= {(factor, factor) for factor in (0x12, 0x13, 0x21, 0x31)}
DAMAGE = re.compile("premature end|bad (huffman|arithmetic) code|instead of RST", re.IGNORECASE)
HARMLESS = re.compile("extraneous bytes before marker 0xd9")  # 0xd9 is the end marker, so no other warning can follow
SCALES = (8, 4, 2, 1)


class Header(NamedTuple):
    """A JPEG header. Sizes are in pixels; `scan` is the offset of the first scan's marker. tagged: the file has EXIF or
    XMP metadata."""

    height: int
    width: int
    components: int
    progressive: bool
    scan: int
    tagged: bool


def read_header(data: bytes) -> Header | None:
    """Parse the header, up to the first scan, in 10 µs.

    Returns None unless every decoder can read the file: baseline or progressive Huffman coding, 8 bits, 1, 3 or 4
    components with one of the `SAMPLINGS`, and no bytes between the segments. libjpeg reads other samplings (4:4:1 and
    the like), but the TurboJPEG API has no names for them. DALI rejects files with stray bytes between segments, and
    libjpeg only warns about them.
    """
    frame: tuple[int, int, int] | None = None
    progressive = tagged = False
    try:
        for marker, start, _ in _segments(data):
            if marker in (BASELINE, EXTENDED, PROGRESSIVE):
                bits, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
                if bits != 8 or 0 in (height, width) or not _is_common(data[start + 11 :: 3][:components], components):
                    return None
                frame, progressive = (height, width, components), marker == PROGRESSIVE
            elif marker == SOS:
                return Header(*frame, progressive, start, tagged) if frame is not None else None
            elif marker in STANDALONE or (marker < 0xD0 and marker != DHT):
                return None
            tagged |= marker == APP1
    except (struct.error, IndexError):
        pass
    return None


def _is_common(factors: bytes, components: int) -> bool:
    """Whether every decoder accepts these sampling factors, one byte per component. For one component they do not
    matter."""
    if components == 1:
        return len(factors) == 1
    if len(factors) != components or components not in (3, 4) or (components == 4 and factors[3] != factors[0]):
        return False
    return factors[1] == factors[2] and (factors[0], factors[1]) in SAMPLINGS


def why_not(data: bytes) -> str:
    """Why libjpeg cannot read a JPEG file, if the frame header shows the reason; otherwise an empty string."""
    frame = _frame(data)
    if frame is None:
        return ""
    marker, bits, height, components = frame
    if marker in HIERARCHICAL:
        return "a hierarchical JPEG, which is not supported"
    if bits != 8:
        return f"a JPEG with {bits} bits per sample; only 8 bits are supported, convert it first"
    if marker in LOSSLESS:
        return "a lossless JPEG of an unsupported kind, convert it first"
    if height == 0:
        return "a JPEG without a height in its frame header (the height follows the pixels, as DNL)"
    if components not in (1, 3, 4):
        return f"a JPEG with {components} components; only 1, 3 or 4 are supported"
    return ""


def _frame(data: bytes) -> tuple[int, int, int, int] | None:
    """The frame header's marker, bits per sample, height in pixels and number of components, if there is one."""
    try:
        for marker, start, _ in _segments(data):
            if marker in FRAMES:
                bits, height, _, components = struct.unpack_from(">BHHB", data, start + 4)
                return marker, bits, height, components
    except (struct.error, IndexError):
        pass
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end (bytes) of each segment, from the start of the file to the first gap between segments."""
    start = 2 if data.startswith(SOI) else len(data)
    while data[start] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, start + 1)
        if marker == 0xFF:  # any number of them may precede a marker
            start += 1
            continue
        yield marker, start, start + 2 + length
        start += 2 + length


def check_pixels(data: bytes, header: Header) -> None:
    """Entropy-decode every coefficient, to find damage.

    At 1/8 scale, libjpeg still entropy-decodes everything but skips most of the other work. This is 1.5 times faster on
    ImageNet, and it finds the same damage (tested).

    Raises:
        ValueError: coefficients are missing or damaged; libjpeg's message, on one line.
    """
    try:
        _decode(data, 8, "gray")
    except ValueError:
        # libjpeg reports only its first warning, so try again without the parts that do not affect pixels
        try:
            _decode(_without_metadata(data, header), 8, "gray")
        except ValueError as error:
            if not HARMLESS.search(str(error)):
                raise


def check_odd(data: bytes) -> None:
    """Like `check_pixels`, but for a JPEG without a `Header`. It finds no damage if TurboJPEG lacks the sampling.

    TurboJPEG reports only the first warning, and that may concern the odd header. So only messages that match `DAMAGE`
    count as damage. Pillow checks lossless JPEGs, because libjpeg-turbo 3.1 crashes when it scales them down.
    """
    frame = _frame(data)
    if frame is None or frame[0] not in (BASELINE, EXTENDED, PROGRESSIVE):
        return
    try:
        _decode(data, 1, "gray")
    except ValueError as error:
        if DAMAGE.search(str(error)):
            raise


def has_end(data: bytes, header: Header) -> bool:
    """Whether there is an end marker after the start of the first scan; without one, the file is truncated."""
    return data.rfind(EOI, header.scan) >= 0


def decode(data: bytes, header: Header, scale: int = 1) -> NDArray[np.uint8]:
    """Decode the pixels at 1/scale of the size, rounded up: (height, width, 1) gray or (height, width, 4) RGBX, uint8.

    `scale` is 1, 2, 4 or 8 (scaled in the DCT).

    Raises:
        ValueError: as for `check_pixels`.
    """
    colours = "gray" if header.components == 1 else "rgbx"
    try:
        return _decode(data, scale, colours)
    except ValueError:
        check_pixels(data, header)
    try:
        return _decode(data, scale, colours, strict=False)
    except ValueError:  # TurboJPEG rejects some headers even without `strict`, e.g. JFIF 2.01
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            pixels = np.asarray(image.convert("L" if header.components == 1 else "RGBX").reduce(scale))
        return pixels.reshape(*pixels.shape[:2], -1)


def _decode(data: bytes, scale: int, colours: str, strict: bool = True) -> NDArray[np.uint8]:
    import simplejpeg  # type: ignore[import-untyped]  # here: training on packed shards never needs it

    least = {}
    if scale > 1:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, **least, strict=strict)
    return pixels


def _without_metadata(data: bytes, header: Header) -> bytes:
    """The same coefficients without APPn and COM segments, and with the scan parameters that baseline requires."""
    kept = [SOI]
    for marker, start, end in _segments(data):
        if start >= header.scan:
            break
        if marker not in METADATA:
            kept.append(data[start:end])
    scans = bytearray(data[header.scan :])
    if not header.progressive:
        end = 2 + int.from_bytes(scans[2:4])
        scans[end - 3 : end] = b"\x00\x3f\x00"  # cameras write others, decoders ignore them
    return b"".join([*kept, bytes(scans)])
