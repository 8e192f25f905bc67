"""`pipeline/gray.py`: it changes one byte, decoders give the same pixels, and the probe uses it only on a GPU."""

import io
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from penstock.pipeline.config import DataConfig
from penstock.pipeline.gray import with_unit_factor
from penstock.pipeline.probe import _decode_alone

SCENE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((83, 61))
FRAME = bytes.fromhex("08 003d 0053 01 01")  # 8 bits, 61×83, a component, its id; then its factors
SEGMENT = b"\x00\x0c\xff\xc0\x00\x0b" + FRAME[:-1]  # length, and what looks like a frame header, as in a thumbnail


def saved(kind: str = "JPEG", mode: str = "L", **options: Any) -> bytes:
    stream = io.BytesIO()
    SCENE.convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def with_factors(factors: int, data: bytes) -> bytes:
    place = data.rindex(FRAME) + len(FRAME)
    return data[:place] + bytes([factors]) + data[place + 1 :]


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


GRAY = saved(subsampling=2)
CASES = {
    "4:2:0": GRAY,
    "2x1": with_factors(0x21, GRAY),
    "1x4": with_factors(0x14, GRAY),
    "progressive": saved(subsampling=2, progressive=True),
    "extended": GRAY.replace(b"\xff\xc0", b"\xff\xc1"),
    "metadata": GRAY[:2] + b"\xff\xe1" + SEGMENT + b"\xff\xe1" + SEGMENT + b"\xff\xfe\x00\x02" + GRAY[2:],
    "long": GRAY[:2] + b"\xff\xe2\xff\xff" + bytes(0xFFFD) + GRAY[2:],
    "fill": GRAY[:2] + GRAY[2:].replace(b"\xff\xdb", b"\xff\xff\xff\xdb").replace(b"\xff\xc0", b"\xff\xff\xc0"),
}
OTHERS = {
    "gray": saved(subsampling=0),
    "colour 4:4:4": saved(mode="RGB", subsampling=0),
    "colour 4:2:0": saved(mode="RGB", subsampling=2),
    "CMYK": saved(mode="CMYK"),
    "PNG": saved("PNG"),
    "no start": b"\xff\xd9" + GRAY[2:],
    "no length": b"\xff\xd8" + b"\xff\xe0\x00\x00" * 9,
    "fill alone": b"\xff\xd8" + b"\xff" * 99,
    "after a scan": GRAY[:2] + b"\xff\xda\x00\x02" + GRAY[2:],
}


@pytest.mark.parametrize("case", CASES)
def test_one_byte_changes_and_no_pixel(case: str) -> None:
    data = CASES[case]
    found = with_unit_factor(array(data)).tobytes()
    assert data != found == with_factors(0x11, data)
    layer: Any = Image.open(io.BytesIO(found))
    assert [component[1:3] for component in layer.layer] == [(1, 1)]
    pixels: list[Callable[[bytes], np.ndarray]] = [
        lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg))),
        lambda jpeg: simplejpeg.decode_jpeg(jpeg, "gray"),
    ]
    for decode in pixels:
        assert np.array_equal(decode(found), decode(data))
    assert array(data).tobytes() == data


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_not_copied(case: str) -> None:
    view = array(OTHERS[case])
    assert with_unit_factor(view) is view


@pytest.mark.parametrize("case", ["4:2:0", "metadata", "fill"])
def test_a_file_that_ends_early(case: str) -> None:
    data = CASES[case]
    place = data.rindex(FRAME) + len(FRAME)
    for size in range(place + 20):
        view = array(data[:size])
        assert (with_unit_factor(view) is view) == (size <= place)


@pytest.mark.parametrize(("gpu", "factors"), [(None, 0x22), (0, 0x11)])
def test_what_the_probe_hands_to_dali(monkeypatch: pytest.MonkeyPatch, gpu: int | None, factors: int) -> None:
    class Given(Exception): ...

    def inputs(source: Callable[[], Any], names: Any) -> Any:
        raise Given(source()[0][0].tobytes())

    monkeypatch.setattr("penstock.pipeline.probe.new_pipeline", lambda *_, **__: nullcontext())
    monkeypatch.setattr("penstock.pipeline.probe.inputs", inputs)
    with pytest.raises(Given) as given:
        _decode_alone(array(GRAY), np.zeros(2, np.int32), np.array([61, 83], np.int32), DataConfig(), gpu)
    assert given.value.args == (with_factors(factors, GRAY),)
