"""Images that decoders read differently: `encode` compared with Pillow, and the images that `examine` accepts."""

import io
import itertools

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from penstock.shard_tools import encode as encode_module
from penstock.shard_tools import scan, trainable
from penstock.shard_tools.encode import BadImage, EncodeConfig, encode
from penstock.shard_tools.jpeg import read_header
from penstock.shard_tools.scan import examine
from penstock.shard_tools.trainable import check_trains
from tests.common.odd_jpegs import bmp16, lossless, sampled, saved, smooth, with_frame, without_adobe

ONE = (1, 1)
ODD = [
    ((1, 4), ONE, ONE),
    ((2, 4), ONE, ONE),
    ((3, 1), ONE, ONE),
    ((4, 1), (2, 1), (2, 1)),
    ((2, 2), (2, 1), (1, 2)),
    (ONE, (2, 2), (2, 2)),
]
PLAIN = saved(smooth(), "JPEG", quality=95)
CMYK = saved(smooth().convert("CMYK"), "JPEG", quality=95)
DEEP = saved(Image.fromarray(np.asarray(smooth().convert("L")).astype(np.uint16) << 8), "PNG")


def rgb(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def apart(data: bytes, expected: np.ndarray) -> int:
    """Grey levels, at most."""
    return int(np.abs(rgb(data) - expected).max())


def test_common_samplings_are_those_that_turbojpeg_names() -> None:
    """Except for 4:4:1, which it names but simplejpeg does not support."""
    at = PLAIN.index(b"\xff\xc0") + 11
    every = [h << 4 | v for h, v in itertools.product(range(1, 5), repeat=2)]
    pairs = [(luma, chroma, chroma) for luma, chroma in itertools.product(every, repeat=2)]
    for factors in [*pairs, *itertools.islice(itertools.product(every, repeat=3), 0, None, 37)]:
        data = bytearray(PLAIN)
        data[at : at + 9 : 3] = bytes(factors)
        try:
            simplejpeg.decode_jpeg_header(bytes(data))
            named = True
        except (ValueError, KeyError):
            named = False
        assert (read_header(bytes(data)) is not None) == named, [hex(factor) for factor in factors]


@pytest.mark.parametrize("factors", ODD)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_odd_samplings_are_converted_by_way_of_pillow(factors, options) -> None:
    data = sampled(smooth(), factors, **options)
    assert np.abs(rgb(data) - np.asarray(smooth())).mean() < 5  # it is that picture
    for config in (EncodeConfig(), EncodeConfig(check="header"), EncodeConfig(baseline=True)):
        encoded = encode(data, config)
        assert (encoded.kind, encoded.height, encoded.width) == ("odd-jpeg", 64, 80)
        assert apart(encoded.jpeg, rgb(data)) <= 10
        assert encode(encoded.jpeg).kind == "jpeg"
    small = encode(data, EncodeConfig(max_side=40, quality=95, subsampling="444"))
    assert (small.kind, small.height, small.width) == ("odd-jpeg", 32, 40)
    assert np.abs(rgb(small.jpeg) - np.asarray(smooth(size=(40, 32)))).mean() < 5
    assert examine(data) == (64, 80, "odd-jpeg", False)  # DALI sees what Pillow sees
    with pytest.raises(BadImage, match=r"truncated|Premature end"):
        encode(data[: len(data) // 2])


def test_damage_is_seen_where_turbojpeg_reads_the_sampling() -> None:
    data = sampled(smooth(), ODD[0], restart_marker_blocks=2)
    scan = data.rindex(b"\xff\xda")
    second = data.index(b"\xff\xd1", scan)
    for broken, reason in (
        (data[: scan + (len(data) - scan) // 2] + b"\xff\xd9", "premature end"),
        (data[: second + 1] + b"\xd4" + data[second + 2 :], "instead of RST"),
    ):
        with pytest.raises(BadImage, match=reason):
            encode(broken)


def test_odd_samplings_of_cmyk() -> None:
    data = sampled(smooth().convert("CMYK"), ((1, 4), ONE, ONE, ONE))
    encoded = encode(data)
    assert encoded.kind == "cmyk"
    assert apart(encoded.jpeg, rgb(data)) <= 10


UNREADABLE = {
    "12 bits per sample; only 8 bits": with_frame(PLAIN, 0xC1, bits=12),
    "2 components": with_frame(PLAIN, components=2),
    "without a height": with_frame(PLAIN, height=0),
    "hierarchical": with_frame(PLAIN, 0xC5),
    "lossless": with_frame(PLAIN, 0xC3),
    "a JPEG with a damaged header": b"\xff\xd8\xff\xc0",
    "a PNG with a damaged header": saved(smooth(), "PNG").replace(b"IHDR", b"IHDS"),
    "ftypheic": b"\0\0\0\x18ftypheic",
    "empty file": b"",
    "not a JPEG, PNG": b"GIF89a",
}


@pytest.mark.parametrize("reason", UNREADABLE)
@pytest.mark.parametrize("look", [encode, examine])
def test_the_reason_is_true(look, reason) -> None:
    with pytest.raises(BadImage, match=reason):
        look(UNREADABLE[reason])


def test_what_turbojpeg_finds_strange_is_written_anew_by_way_of_pillow() -> None:
    """It makes errors of libjpeg's warnings about a header, strict or not."""
    revision = PLAIN.replace(b"JFIF\0\1", b"JFIF\0\2")
    gray = saved(smooth().convert("L"), "JPEG", quality=95).replace(b"JFIF\0\1", b"JFIF\0\2")
    adobe = PLAIN[:2] + b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\7" + PLAIN[20:]
    for data in (revision, gray, adobe):
        assert encode(data).kind == "jpeg"
        whole = encode(data, EncodeConfig(reencode=True, quality=95, subsampling="444"))
        assert apart(whole.jpeg, rgb(data)) <= 10
        small = encode(data, EncodeConfig(short_side=16))
        assert (small.kind, small.height, small.width) == ("resized", 16, 20)
        assert np.abs(rgb(small.jpeg) - np.asarray(Image.fromarray(rgb(data).astype(np.uint8)).reduce(4))).mean() < 5


def test_more_pixels_than_pack_takes_do_not_train_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_PIXELS", 80 * 64 - 1)
    for data in (PLAIN, saved(smooth(), "PNG")):
        with pytest.raises(BadImage, match="80×64 pixels, more than 5,119; pack"):
            examine(data)


def test_an_unforeseen_exception_is_the_images_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise KeyError(6)

    monkeypatch.setattr(encode_module, "read_header", broken)
    monkeypatch.setattr(scan, "read_header", broken)
    monkeypatch.setattr(trainable, "_decoder", broken)
    for look in (encode, examine, lambda data: check_trains(data, 64, 80, compare=False)):
        with pytest.raises(BadImage, match=r"^KeyError: 6$"):
            look(PLAIN)


DIFFERENT = {  # as in DALI's eyes
    "CMYK without Adobe's marker": (without_adobe(CMYK), "mode CMYK; up to 2.. of 255"),
    "16-bit PNG": (DEEP, "mode I;16"),
    "5-5-5 BMP": (bmp16(smooth(), 5), "DALI cannot decode it"),
    "5-6-5 BMP": (bmp16(smooth(), 6), "up to 7 of 255"),
    "lossless JPEG": (lossless(np.asarray(smooth().convert("L"))), "DALI cannot decode it"),
}
SAME = {
    "CMYK": (CMYK, "cmyk"),
    "PNG": (saved(smooth(), "PNG"), "png"),
    "palette": (saved(smooth().quantize(16), "PNG"), "png"),
    "lossy WebP": (saved(smooth(), "WEBP"), "webp"),
    "BMP": (saved(smooth(), "BMP"), "bmp"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_dali_sees_otherwise_does_not_train_in_place_and_pack_converts_it_as_pillow_sees_it(name) -> None:
    data, reason = DIFFERENT[name]
    with pytest.raises(BadImage, match=reason):
        examine(data)
    encoded = encode(data)
    seen = np.asarray(smooth().convert("L"))[..., None] if name == "16-bit PNG" else rgb(data)  # Pillow cuts it off
    assert apart(encoded.jpeg, seen) <= 12
    check_trains(encoded.jpeg, 64, 80, compare=True)  # also: the decoder works again after an error


@pytest.mark.parametrize("name", SAME)
def test_what_dali_sees_as_pillow_does_trains_in_place(name) -> None:
    data, kind = SAME[name]
    assert examine(data) == (64, 80, kind, False)


def test_torchvisions_decoder_reads_cmyk_as_pillow_does() -> None:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    data = torch.frombuffer(bytearray(without_adobe(CMYK)), dtype=torch.uint8)
    theirs = decode_image(data, ImageReadMode.RGB).permute(1, 2, 0).numpy()
    assert apart(encode(without_adobe(CMYK)).jpeg, theirs) <= 12


def test_ordinary_jpegs_are_told_by_their_header_and_decode_to_pillows_pixels(monkeypatch) -> None:
    ordinary = [
        saved(smooth().convert(mode), "JPEG", subsampling=subsampling, progressive=progressive)
        for mode, subsampling, progressive in itertools.product(("RGB", "L"), (0, 1, 2), (False, True))
    ]
    ordinary += [saved(smooth(), "JPEG", keep_rgb=True), sampled(smooth(), ((4, 1), ONE, ONE))]
    for data in ordinary:
        check_trains(data, 64, 80, compare=True)
    monkeypatch.setattr(scan, "check_trains", None)
    assert {examine(data) for data in ordinary} == {(64, 80, "jpeg", False)}


def test_what_dali_refuses_is_no_training_image_though_libjpeg_takes_it() -> None:
    at = PLAIN.index(b"\xff\xda")
    with pytest.raises(BadImage, match="DALI cannot decode it"):
        check_trains(PLAIN[:at] + b"\1\2" + PLAIN[at:], 64, 80, compare=False)
    with pytest.raises(BadImage, match="64×80 pixels"):
        check_trains(PLAIN, 65, 80, compare=False)
