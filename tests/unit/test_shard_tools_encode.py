"""`encode` compared with Pillow: files that pass unchanged, scaled or converted, and refused files."""

import io
import warnings

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from penstock.shard_tools.encode import BadImage, EncodeConfig, Encoded, encode
from penstock.shard_tools.jpeg import decode, read_header
from penstock.shard_tools.resize import resize

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
    inverted_cmyk = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])  # as Adobe stores it
    gray = np.asarray(image.convert("L"))
    return {
        "png": (saved(image, "PNG"), "png", rgb),
        "webp": (saved(image, "WEBP", lossless=True), "webp", rgb),
        "bmp": (saved(image, "BMP"), "bmp", rgb),
        "ppm": (saved(image, "PPM"), "ppm", rgb),
        "ppm with a comment": (saved(image, "PPM").replace(b"P6\n", b"P6 # by hand\n"), "ppm", rgb),
        "pgm": (saved(image.convert("L"), "PPM"), "ppm", np.stack([gray] * 3, -1)),
        "16-bit pgm": (b"P5 83 61 65535 " + gray16.astype(">u2").tobytes(), "ppm", np.stack([gray] * 3, -1)),
        "rgba": (saved(rgba, "PNG"), "png", rgb),
        "rgba webp": (saved(rgba, "WEBP", lossless=True, exact=True), "webp", rgb),
        "gray png": (saved(image.convert("L"), "PNG"), "png", np.stack([gray] * 3, -1)),
        "gray-alpha": (saved(rgba.convert("LA"), "PNG"), "png", np.stack([gray] * 3, -1)),
        "16 bit": (saved(Image.fromarray(gray16), "PNG"), "png", np.stack([gray] * 3, -1)),
        "1 bit": (saved(image.convert("1"), "PNG"), "png", np.asarray(image.convert("1").convert("RGB"))),
        "palette": (saved(palette, "PNG"), "png", np.asarray(palette.convert("RGB"))),
        "transparent palette": (saved(transparent, "PNG"), "png", np.asarray(palette.convert("RGB"))),
        "cmyk": (saved(image.convert("CMYK"), "JPEG", quality=98), "cmyk", rgb),
        "ycck": (simplejpeg.encode_jpeg(inverted_cmyk, 98, "cmyk", "444"), "cmyk", rgb),
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
        "truncated ppm": (saved(noise, "PPM")[:-1], "truncated"),
        "ppm header only": (saved(noise, "PPM")[:5], "."),
        "pfm": (b"Pf 2 1 -1.0 " + bytes(8), "floating-point"),
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


def broken_at_random(data: bytes, i: int) -> bytes:
    damaged = bytearray(data)
    at = int(RNG.integers(len(data)))
    if i % 3 == 0:
        del damaged[at:]
    elif i % 3 == 1:
        damaged[at] = int(RNG.integers(256))
    else:
        damaged[at : at + 40] = bytes(40)
    return bytes(damaged)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_the_check_at_reduced_scale_has_the_verdict_of_a_full_decode(options):
    """Cut and damaged at many places, against libjpeg's warnings at full scale and against Pillow."""
    data = saved(picture(120, 150), "JPEG", quality=85, **options)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    verdicts = []
    for i in range(150):
        broken = broken_at_random(data, i)
        try:
            simplejpeg.decode_jpeg(broken)
            full = True
        except ValueError as warning:
            full = "before marker 0xd9" in str(warning)
        try:
            with Image.open(io.BytesIO(broken), formats=["JPEG"]) as image:
                image.load()
            pillow = True
        except Exception:
            pillow = False
        try:
            encoded = encode(broken)
            accepted = True
            assert encoded.kind != "jpeg" or encoded.jpeg == broken
        except BadImage:
            accepted = False
        if accepted != full:  # only where the metadata are what is damaged, or the header is mended by a new encoding
            assert accepted
            assert pillow
            assert i % 3
        assert pillow or not accepted
        verdicts.append(accepted)
    assert 20 < sum(verdicts) < 130


def with_quirk() -> dict[str, tuple[bytes, str]]:
    """File, and what becomes of it."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    plain = saved(noise, "JPEG", quality=80)
    restarts = saved(noise, "JPEG", quality=80, restart_marker_rows=1)
    scan = plain.index(b"\xff\xda")
    second = restarts.index(b"\xff\xd1", scan)
    odd_revision = plain.replace(b"JFIF\0\1", b"JFIF\0\7", 1)
    parameters = scan + int.from_bytes(plain[scan + 2 : scan + 4]) - 1
    return {
        "bytes before the end marker": (plain[:-2] + bytes(range(1, 200)) + plain[-2:], "jpeg"),
        "bytes after the end marker": (plain + b"xyz" * 50, "jpeg"),
        "second picture": (plain + plain, "jpeg"),
        "unknown JFIF revision": (odd_revision, "jpeg"),
        "odd scan parameters": (plain[:parameters] + b"\5" + plain[parameters + 1 :], "jpeg"),
        "fill bytes": (plain[:scan] + b"\xff\xff" + plain[scan:], "jpeg"),
        "stray bytes in the header": (plain[:scan] + b"\1\2" + plain[scan:], "odd-jpeg"),
        "no end marker": (plain[:-2], "truncated"),
        "half of the data": (plain[: len(plain) // 2] + plain[-2:], "premature end of data"),
        "half, after a harmless warning": (odd_revision[: len(plain) // 2] + plain[-2:], "premature end of data"),
        "restart markers out of order": (restarts[: second + 1] + b"\xd4" + restarts[second + 2 :], "instead of RST"),
    }


@pytest.mark.parametrize("name", with_quirk())
def test_only_warnings_about_pixels_are_fatal(name):
    data, expected = with_quirk()[name]
    try:
        got = encode(data).kind
    except BadImage as error:
        got = str(error)
        assert expected in got
    else:
        assert got == expected


def test_the_header_check_reads_no_pixels_but_sees_a_cut():
    data = bytearray(saved(picture(120, 150), "JPEG"))
    middle = data.index(b"\xff\xda") + 100
    data[middle : middle + 200] = bytes(200)
    with pytest.raises(BadImage):
        encode(bytes(data))
    header_only = EncodeConfig(check="header")
    assert encode(bytes(data), header_only) == Encoded(bytes(data), 120, 150, "jpeg")
    with pytest.raises(BadImage, match="truncated"):
        encode(bytes(data[:-20]), header_only)
    with pytest.raises(BadImage, match="not a JPEG"):
        encode(b"<html>", header_only)
    assert encode(saved(picture(), "PNG"), header_only).kind == "png"


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2, "progressive": True}])
def test_pixels_agree_with_pillow_at_every_scale(mode, options):
    data = saved(Image.fromarray(RNG.integers(0, 256, (93, 130, 3), dtype=np.uint8)).convert(mode), "JPEG", **options)
    header = read_header(data)
    for scale in (1, 2, 4, 8):
        image = Image.open(io.BytesIO(data))
        image.draft(None, (130 // scale, 93 // scale))
        expected = np.asarray(image).astype(int).reshape(*image.size[::-1], -1)
        ours = decode(data, header, scale)[..., :3].astype(int)
        assert ours.shape == expected.shape == (-(-93 // scale), -(-130 // scale), len(image.getbands()))
        assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("size", [(256, 341), (90, 500), (375, 133), (1, 1), (7, 1)])
@pytest.mark.parametrize("channels", [1, 4])
def test_resize_is_pillows_bicubic_to_the_bit(size, channels):
    pixels = RNG.integers(0, 256, (375, 500, channels), dtype=np.uint8)
    bands = [Image.fromarray(band).resize(size[::-1], Image.Resampling.BICUBIC) for band in np.moveaxis(pixels, -1, 0)]
    assert (resize(pixels, *size) == np.stack(bands, -1)).all()


@pytest.mark.parametrize(
    ("settings", "old", "new"),
    [
        ({"short_side": 40}, (61, 83), (40, 54)),
        ({"short_side": 40}, (200, 61), (131, 40)),
        ({"short_side": 30}, (250, 255), (30, 31)),
        ({"short_side": 61}, (61, 83), (61, 83)),
        ({"max_side": 40}, (61, 83), (29, 40)),
        ({"max_side": 3}, (600, 10), (3, 1)),
        ({"max_side": 83}, (61, 83), (61, 83)),
        ({"max_side": 500, "short_side": None}, (61, 83), (61, 83)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_larger_images_are_scaled_down_as_by_pillow_and_others_left_alone(settings, old, new, mode):
    image = Image.fromarray(RNG.integers(0, 256, (*old, 3), dtype=np.uint8)).convert(mode)  # shows any other filter
    data = saved(image, "JPEG", quality=95, subsampling=0)
    config = EncodeConfig(**settings, quality=97, subsampling="444")
    encoded = encode(data, config)
    assert (encoded.height, encoded.width) == new
    if new == old:
        assert encoded == Encoded(data, *old, "jpeg")
        assert encode(saved(image, "PNG"), config).kind == "png"
        return
    assert encoded.kind == "resized"
    result = Image.open(io.BytesIO(encoded.jpeg))
    assert (result.size, result.mode) == (new[::-1], mode)
    expected = Image.open(io.BytesIO(data))
    expected.draft(None, new[::-1])
    expected = np.asarray(expected.resize(new[::-1], Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(np.asarray(result) - expected).mean() < 2.5
    from_png = encode(saved(image, "PNG"), config)
    assert (from_png.height, from_png.width, from_png.kind) == (*new, "png")


def test_reencoding_takes_quality_and_subsampling_and_drops_metadata():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture(), "JPEG", quality=98, exif=exif, comment=b"hello", icc_profile=b"x" * 200)
    sizes = {}
    for subsampling, factors in {"420": (2, 2), "422": (2, 1), "444": (1, 1)}.items():
        for quality in (50, 90):
            encoded = encode(data, EncodeConfig(reencode=True, quality=quality, subsampling=subsampling))
            assert (encoded.kind, encoded.height, encoded.width) == ("reencoded", 61, 83)
            result = Image.open(io.BytesIO(encoded.jpeg))
            assert result.layer[0][1:3] == factors
            assert not result.getexif()
            assert set(result.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            sizes[subsampling, quality] = len(encoded.jpeg)
    assert sizes["420", 90] < sizes["422", 90] < sizes["444", 90]
    assert all(sizes[s, 50] < sizes[s, 90] for s in ("420", "422", "444"))


def test_progressive_becomes_baseline_where_asked():
    data = saved(picture(), "JPEG", progressive=True, quality=95)
    assert encode(data).jpeg is data
    encoded = encode(data, EncodeConfig(baseline=True))
    assert encoded.kind == "progressive"
    assert "progressive" not in Image.open(io.BytesIO(encoded.jpeg)).info
    assert encode(encoded.jpeg, EncodeConfig(baseline=True)).kind == "jpeg"


def test_damaged_images_are_refused_when_they_are_written_anew_too():
    data = saved(picture(200, 300), "JPEG")
    broken = data[: len(data) // 2] + b"\xff\xd9"
    for settings in ({"short_side": 60}, {"reencode": True}, {"max_side": 290}):
        assert encode(data, EncodeConfig(check="header", **settings)).kind != "jpeg"
        with pytest.raises(BadImage, match="premature end"):
            encode(broken, EncodeConfig(check="header", **settings))


@pytest.mark.parametrize(
    "settings",
    [{"check": "none"}, {"quality": 0}, {"subsampling": "411"}, {"max_side": 0}, {"max_side": 5, "short_side": 5}],
)
def test_settings_that_mean_nothing_are_errors(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        EncodeConfig(**settings)
