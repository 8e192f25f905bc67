"""`shards/ppm.py` compared with Pillow's writer and reader."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from penstock.shards.format import SAMPLE_DTYPE
from penstock.shards.ppm import header_sizes, is_ppm, may_have_pixels, ppm_header, to_ppm

SIZES = [(1, 1), (9, 10), (10, 9), (99, 100), (100, 7), (3, 1000), (1, 9999), (1, 10_000), (1, 65_535)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_file_is_what_pillow_writes_and_reads(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PPM")
    data = to_ppm(pixels)
    assert data == stream.getvalue()
    assert (np.asarray(Image.open(BytesIO(data))) == pixels).all()
    assert is_ppm(np.frombuffer(data, np.uint8), height, width)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_table_says_where_the_pixels_begin(height: int, width: int) -> None:
    rows = np.zeros(3, SAMPLE_DTYPE)
    rows["height"], rows["width"] = height, width
    header = len(ppm_header(height, width))
    rows["size"] = header + 3 * height * width + np.array([0, 1, -1])
    assert header_sizes(rows).tolist() == [header, 0, 0]


def test_what_has_the_size_but_not_the_header_is_no_such_file() -> None:
    data = np.frombuffer(to_ppm(np.zeros((5, 7, 3), np.uint8)), np.uint8).copy()
    assert is_ppm(data, 5, 7)
    assert not is_ppm(data, 7, 5)
    assert not is_ppm(data[:-1], 5, 7)
    data[:2] = 0xFF, 0xD8
    assert not is_ppm(data, 5, 7)


def test_one_member_of_a_long_table_is_found() -> None:
    rows = np.zeros(40_000, SAMPLE_DTYPE)
    rows["height"], rows["width"], rows["size"] = 300, 400, 50_000
    assert not may_have_pixels(rows)
    rows["size"][-1] = len(to_ppm(np.zeros((300, 400, 3), np.uint8)))
    assert may_have_pixels(rows)
