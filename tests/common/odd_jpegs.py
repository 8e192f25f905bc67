"""Image files that few encoders write, built from Pillow's: sampling factors, marker codes, pixel formats."""

import io
import struct

import numpy as np
from PIL import Image

Factors = tuple[tuple[int, int], ...]  # horizontal and vertical, of each component


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def smooth(seed: int = 0, size: tuple[int, int] = (80, 64)) -> Image.Image:
    """A picture of (width, height) pixels, so smooth that sampling and quality hardly change it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def sampled(image: Image.Image, factors: Factors, **options: object) -> bytes:
    """A JPEG with any sampling factors: three gray ones, or four of CMYK, as the scans of one.

    Each component is in a scan of its own, so that a decoder takes more blocks than an interleaved scan may have.
    """
    planes = (image if len(factors) == 4 else image.convert("YCbCr")).split()
    most = [max(factor[axis] for factor in factors) for axis in (0, 1)]
    scans, frame = [], b""
    for number, (plane, factor) in enumerate(zip(planes, factors, strict=True), 1):
        size = tuple(-(-side * f // m) for side, f, m in zip(image.size, factor, most, strict=True))
        data = saved(plane.resize(size), "JPEG", quality=95, **options)
        at = max(data.find(b"\xff\xc0\0\x0b"), data.find(b"\xff\xc2\0\x0b"))
        frame = data[at : at + 2]
        tables = data[20:at] + data[at + 13 : -2]  # from behind JFIF's segment on; with the scans
        scans.append(tables.replace(b"\xff\xda\0\x08\x01\x01", b"\xff\xda\0\x08\x01" + bytes([number])))
    parts = b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in enumerate(factors, 1))
    frame += struct.pack(">HBHHB", 8 + len(parts), 8, image.height, image.width, len(factors)) + parts
    return b"\xff\xd8" + frame + b"".join(scans) + b"\xff\xd9"


def with_frame(jpeg: bytes, marker: int = 0xC0, bits: int = 8, height: int | None = None, components: int = 3) -> bytes:
    """A baseline JPEG with a header that claims something else."""
    at = jpeg.index(b"\xff\xc0")
    tall = jpeg[at + 5 : at + 7] if height is None else height.to_bytes(2)
    return jpeg[: at + 1] + bytes([marker]) + jpeg[at + 2 : at + 4] + bytes([bits]) + tall + (
        jpeg[at + 7 : at + 9] + bytes([components]) + jpeg[at + 10 :]
    )  # fmt: skip


def without_adobe(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4]) :]


def lossless(gray: np.ndarray) -> bytes:
    """A lossless JPEG (ITU-T T.81, annex H, predictor 1) of (height, width) uint8."""
    pixels = gray.astype(int)
    predicted = np.roll(pixels, 1, 1)
    predicted[1:, 0], predicted[0, 0] = pixels[:-1, 0], 128
    bits = ""
    for difference in (pixels - predicted).ravel().tolist():
        size = abs(difference).bit_length()
        bits += format(size, "04b")  # the code of a category: itself
        bits += format(difference if difference >= 0 else difference + (1 << size) - 1, f"0{size}b") if size else ""
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    tables = b"\xff\xc4\0\x1f\0" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))
    frame = b"\xff\xc3\0\x0b\x08" + struct.pack(">HH", *gray.shape) + b"\x01\x01\x11\0"
    return b"\xff\xd8" + frame + tables + b"\xff\xda\0\x08\x01\x01\0\x01\0\0" + data + b"\xff\xd9"


def bmp16(image: Image.Image, green_bits: int) -> bytes:
    """A BMP with 16 bits per pixel: 5-5-5, or 5-6-5 with its masks. The width must be even."""
    r, g, b = (np.asarray(plane)[::-1].astype(np.uint16) for plane in image.split())
    pixels = r >> 3 << (5 + green_bits) | g >> (8 - green_bits) << 5 | b >> 3
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F) if green_bits == 6 else b""
    data, start = pixels.astype("<u2").tobytes(), 54 + len(masks)
    info = struct.pack("<IiiHHIIiiII", 40, *image.size, 1, 16, 3 if masks else 0, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + masks + data


def oriented(image: Image.Image, orientation: int, format: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, format, exif=exif, **options)
