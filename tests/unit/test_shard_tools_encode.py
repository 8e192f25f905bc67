"""`encode` against Pillow: what passes through, what is converted, what is refused."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from shard_tools.encode import BadImage, EncodeConfig, encode

RNG = np.random.default_rng(0)


def picture(height: int = 61, width: int = 83) -> Image.Image:
    """Smooth, so that JPEG keeps it close."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 3 % 256, y * 3 % 256, (x + y) * 2 % 256], -1).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BILINEAR
    )


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("L", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0, "quality": 98}),
        ("RGB", {"exif": b"Exif\0\0broken", "comment": b"hello"}),
    ],
)
def test_gray_and_colour_jpegs_pass_through(mode, options):
    data = saved(picture().convert(mode), "JPEG", **options)
    encoded = encode(data)
    assert encoded.jpeg is data
    assert (encoded.height, encoded.width, encoded.kind) == (61, 83, "jpeg")


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture(), "JPEG", exif=exif)
    encoded = encode(data)
    assert encoded.jpeg is data
    assert (encoded.height, encoded.width) == (61, 83)


def test_one_pixel_jpeg():
    assert encode(saved(picture(1, 1), "JPEG")).kind == "jpeg"


def convertible() -> dict[str, tuple[bytes, str, np.ndarray]]:
    image = picture()
    rgba = image.copy()
    rgba.putalpha(100)
    gray16 = (np.asarray(image.convert("L")).astype(np.uint16) << 8) | 77
    palette = image.quantize(64)
    transparent = palette.copy()
    transparent.info["transparency"] = bytes(range(64))
    rgb = np.asarray(image)
    gray = np.asarray(image.convert("L"))
    return {
        "png": (saved(image, "PNG"), "png", rgb),
        "webp": (saved(image, "WEBP", lossless=True), "webp", rgb),
        "bmp": (saved(image, "BMP"), "bmp", rgb),
        "rgba": (saved(rgba, "PNG"), "png", rgb),
        "rgba webp": (saved(rgba, "WEBP", lossless=True, exact=True), "webp", rgb),
        "gray png": (saved(image.convert("L"), "PNG"), "png", np.stack([gray] * 3, -1)),
        "gray-alpha": (saved(rgba.convert("LA"), "PNG"), "png", np.stack([gray] * 3, -1)),
        "16 bit": (saved(Image.fromarray(gray16), "PNG"), "png", np.stack([gray] * 3, -1)),
        "1 bit": (saved(image.convert("1"), "PNG"), "png", np.asarray(image.convert("1").convert("RGB"))),
        "palette": (saved(palette, "PNG"), "png", np.asarray(palette.convert("RGB"))),
        "transparent palette": (saved(transparent, "PNG"), "png", np.asarray(palette.convert("RGB"))),
        "cmyk": (saved(image.convert("CMYK"), "JPEG", quality=98), "cmyk", rgb),
    }


@pytest.mark.parametrize("name", convertible())
def test_the_rest_becomes_a_close_rgb_jpeg(name):
    data, kind, expected = convertible()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = encode(data)
    assert encoded.kind == kind
    result = Image.open(io.BytesIO(encoded.jpeg))
    assert (result.format, result.mode, result.size) == ("JPEG", "RGB", (83, 61))
    assert (encoded.height, encoded.width) == (61, 83)
    difference = np.abs(np.asarray(result).astype(int) - expected)
    assert difference.mean() < 4, difference.mean()


def test_converted_jpeg_has_no_metadata_and_full_chroma():
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngInfo()
    text.add_text("comment", "hello")
    result = Image.open(io.BytesIO(encode(saved(picture(), "PNG", exif=exif, pnginfo=text)).jpeg))
    assert not result.getexif()
    assert not {"comment", "exif", "icc_profile"} & set(result.info)
    assert [layer[1:3] for layer in result.layer] == [(1, 1)] * 3


def bad() -> dict[str, tuple[bytes, str]]:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (61, 83, 3), dtype=np.uint8))
    jpeg = saved(noise, "JPEG")
    frames = [picture(), picture().rotate(90)]
    return {
        "empty": (b"", "empty"),
        "text": (b"<html>not found</html>", "not a JPEG"),
        "header only": (jpeg[:20], "."),
        "truncated": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated at the end": (jpeg[:-20], "truncated"),
        "truncated png": (saved(noise, "PNG")[:-600], "truncated"),
        "gif": (saved(picture(), "GIF"), "not a JPEG"),
        "animated webp": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "animated png": (saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated"),
        "wide": (saved(Image.new("L", (65_501, 1)), "PNG"), "at most"),
        "png with broken pixels": (saved(noise, "PNG")[:2000] + b"\0" * 500, "."),
    }


@pytest.mark.parametrize("name", bad())
def test_bad_images_are_refused_with_a_reason(name):
    data, reason = bad()[name]
    with pytest.raises(BadImage, match=reason) as caught:
        encode(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value)


def test_max_pixels():
    data = saved(picture(), "JPEG")
    assert encode(data, EncodeConfig(max_pixels=61 * 83))
    with pytest.raises(BadImage, match="max-pixels"):
        encode(data, EncodeConfig(max_pixels=61 * 83 - 1))


def test_the_limit_is_ours_not_pillows():
    header = bytearray(saved(picture(), "BMP"))
    header[18:26] = (40_000).to_bytes(4, "little") + (20_000).to_bytes(4, "little")
    with pytest.raises(BadImage, match="truncated"):  # so it went on to the pixels
        encode(bytes(header), EncodeConfig(max_pixels=10**9))


def test_a_90_megapixel_jpeg_passes_without_a_warning():
    data = saved(Image.new("L", (12_000, 8_000)), "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(data).width == 12_000


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_the_reduced_check_has_the_verdict_of_a_full_decode(options):
    """Cut and damaged at many places: whatever Pillow's full decode refuses, `encode` refuses, and nothing else."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = saved(picture(120, 150), "JPEG", quality=85, **options)
    verdicts = []
    for i in range(160):
        broken = bytearray(data)
        if i % 2:
            del broken[int(RNG.integers(len(data))) :]
        else:
            broken[int(RNG.integers(len(data)))] = int(RNG.integers(256))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(io.BytesIO(broken), formats=["JPEG"])
                image.load()
            full = image.mode in ("L", "RGB")
        except Exception:
            full = False
        try:
            reduced = encode(bytes(broken)).kind == "jpeg"
        except BadImage:
            reduced = False
        verdicts.append(full)
        assert reduced == full, i
    assert 20 < sum(verdicts) < 140
