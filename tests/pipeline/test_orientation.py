"""EXIF orientation compared with Pillow's `exif_transpose`: turned images, written files, and counts."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from penstock.shard_tools.encode import EncodeConfig, encode
from penstock.shard_tools.orientation import upright
from penstock.shard_tools.scan import examine
from tests.common.odd_jpegs import oriented, sampled, saved, smooth

APPLY = EncodeConfig(apply_orientation=True)
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


def turned(data: bytes) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert image is not None
    return image.convert("RGB")


def apart(data: bytes, expected: Image.Image) -> int:
    """Grey levels, at most."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == expected.size
        return int(np.abs(np.asarray(image.convert("RGB")).astype(int) - np.asarray(expected)).max())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    with Image.open(io.BytesIO(oriented(Image.fromarray(pixels), orientation, "PNG"))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert (upright(pixels, orientation) == expected).all()


KINDS = {
    "JPEG": lambda n: oriented(smooth(), n, quality=98),
    "progressive": lambda n: oriented(smooth(), n, quality=98, progressive=True),
    "gray": lambda n: oriented(smooth().convert("L"), n, quality=98),
    "CMYK": lambda n: oriented(smooth().convert("CMYK"), n, quality=98),
    "PNG": lambda n: oriented(smooth(), n, "PNG"),
    "WebP": lambda n: oriented(smooth(), n, "WEBP"),
}


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_turned_where_asked_and_counted_where_not(kind: str, orientation: int) -> None:
    data = KINDS[kind](orientation)
    left = encode(data)
    assert left.unturned
    assert (left.height, left.width) == (64, 80)
    assert (left.jpeg == data) == (kind in ("JPEG", "progressive", "gray"))
    assert examine(data).unturned

    encoded = encode(data, APPLY)
    assert (encoded.kind, encoded.unturned) == ("oriented", False)
    assert (encoded.height, encoded.width) == ((80, 64) if orientation >= 5 else (64, 80))
    assert apart(encoded.jpeg, turned(data)) <= 14
    result = Image.open(io.BytesIO(encoded.jpeg))
    assert not result.getexif()
    assert result.mode == ("L" if kind == "gray" else "RGB")
    assert {layer[1:3] for layer in result.layer} == {(1, 1)}  # type: ignore[attr-defined]
    as_converted = Image.open(io.BytesIO(saved(smooth(), "JPEG", quality=95)))
    assert result.quantization[0] == as_converted.quantization[0]  # type: ignore[attr-defined]
    assert encode(encoded.jpeg, APPLY).kind == "jpeg"


@pytest.mark.parametrize("kind", ["JPEG", "gray", "PNG"])
def test_with_other_settings_the_turned_image_is_what_they_apply_to(kind: str) -> None:
    data = KINDS[kind](6)
    for settings, size in (
        ({"short_side": 32}, (40, 32)),
        ({"max_side": 40}, (40, 32)),
        ({"reencode": True}, (80, 64)),
    ):
        encoded = encode(data, EncodeConfig(apply_orientation=True, **settings, quality=97, subsampling="422"))
        assert (encoded.kind, (encoded.height, encoded.width)) == ("oriented", size)
        expected = turned(data).resize(size[::-1], Image.Resampling.BICUBIC)
        assert apart(encoded.jpeg, expected) <= 16
        result = Image.open(io.BytesIO(encoded.jpeg))
        assert result.layer[0][1:3] == ((1, 1) if kind == "gray" else (2, 1))  # type: ignore[attr-defined]
    low = encode(KINDS["progressive"](6), EncodeConfig(apply_orientation=True, baseline=True, quality=20))
    assert len(low.jpeg) < len(encode(KINDS["progressive"](6), APPLY).jpeg)
    assert low.kind == "oriented"


def test_what_has_no_orientation_is_left_alone() -> None:
    sources = [oriented(smooth(), value) for value in (1, 0, 9)]
    sources += [
        saved(smooth(), "JPEG", exif=b"Exif\0\0broken"),
        saved(smooth(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08"),
    ]
    for data in sources:
        for config in (EncodeConfig(), APPLY):
            encoded = encode(data, config)
            assert encoded.jpeg is data
            assert not encoded.unturned
        assert not examine(data).unturned


def test_orientation_is_found_where_pillow_finds_it() -> None:
    """In XMP alone, in a PNG's text, and in a JPEG that has to be converted anyway."""
    raw = Image.Exif()
    raw[0x0112] = 3
    text = PngInfo()
    hexed = raw.tobytes().hex()
    text.add_text("Raw profile type exif", f"\nexif\n{len(hexed) // 2:8}\n{hexed}\n", zip=True)
    odd = sampled(smooth(), ((1, 4), (1, 1), (1, 1)))
    app1 = oriented(smooth(), 8)
    at = app1.index(b"\xff\xe1")
    segment = app1[at : at + 2 + int.from_bytes(app1[at + 2 : at + 4])]
    for data in (
        saved(smooth(), "JPEG", xmp=XMP),
        saved(smooth(), "PNG", pnginfo=text),
        odd[:2] + segment + odd[2:],
    ):
        assert encode(data).unturned
        assert examine(data).unturned
        assert apart(encode(data, APPLY).jpeg, turned(data)) <= 14
