"""The images that `--pixels` chooses, and their pixels compared with Pillow's."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock.shard_tools import encode as encode_module
from penstock.shard_tools.describe import stored_as_pixels
from penstock.shard_tools.encode import BadImage, EncodeConfig, Encoded, encode, pixels_of
from penstock.shard_tools.shard import ShardJob
from penstock.shards.format import SAMPLE_DTYPE
from penstock.shards.ppm import header_sizes, ppm_header

RNG = np.random.default_rng(0)


def chosen(pixels: float, num_images: int, seed: int = 0, split: str = "train", shards: int = 1) -> set[int]:
    """The positions of a split, cut into so many shards, that are stored as pixels."""
    found: set[int] = set()
    for shard, positions in enumerate(np.array_split(np.arange(num_images), shards)):
        first, count = int(positions[0]), len(positions)
        job = ShardJob(Path("/out"), split, shard, first, count, 0, num_images, seed, EncodeConfig(pixels=pixels))
        found |= {first + int(i) for i in np.flatnonzero(job.as_pixels())}
    return found


@pytest.mark.parametrize("num_images", [1, 2, 7, 1000, 1281])
def test_exactly_the_share_is_chosen_and_a_larger_one_has_all_of_a_smaller(num_images: int) -> None:
    smaller: set[int] = set()
    for share in (0.0, 0.001, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0):
        found = chosen(share, num_images)
        assert len(found) == round(share * num_images)
        assert smaller <= found
        assert found == chosen(share, num_images, shards=min(5, num_images))
        smaller = found


def test_the_choice_is_the_seeds_and_the_splits_and_spread_over_the_shards() -> None:
    found = chosen(0.5, 1000)
    assert found != chosen(0.5, 1000, seed=1)
    assert found != chosen(0.5, 1000, split="val")
    counts = np.bincount(np.array(sorted(found)) // 100, minlength=10)
    assert (np.abs(counts - 50) < 25).all()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"pixels is {share}; it must be from 0 to 1")):
        EncodeConfig(pixels=share)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("settings", [{}, {"short_side": 20}, {"reencode": True, "quality": 40}])
def test_pixels_are_those_of_the_jpeg_that_would_be_stored(mode: str, settings: dict[str, Any]) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (33, 47, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    encoded = encode(buffer.getvalue(), EncodeConfig(**settings))
    with Image.open(io.BytesIO(encoded.jpeg)) as stored:
        expected = np.asarray(stored.convert("RGB"))
    assert (pixels_of(encoded) == expected).all()
    assert pixels_of(encoded).shape == (encoded.height, encoded.width, 3)


def test_damage_that_the_header_check_has_not_seen_is_seen() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (120, 150, 3), dtype=np.uint8)).save(buffer, "JPEG")
    data = buffer.getvalue()
    encoded = encode(data[: len(data) // 2] + data[-2:], EncodeConfig(check="header"))
    with pytest.raises(BadImage, match="Corrupt JPEG data: premature end of data"):
        pixels_of(encoded)


def test_pixels_that_no_table_can_hold_are_a_bad_image() -> None:
    rows = np.zeros(1, SAMPLE_DTYPE)  # the sides of an image of the largest usual size, and its member's
    side = 13_377
    rows["height"], rows["width"], rows["size"] = side, side, len(ppm_header(side, side)) + 3 * side * side
    assert side**2 <= encode_module.MAX_PIXELS < (side + 1) ** 2
    assert header_sizes(rows)[0] == len(ppm_header(side, side))
    assert encode_module.MAX_PIXEL_BYTES + len(ppm_header(65_500, 65_500)) <= np.iinfo(rows["size"].dtype).max
    huge = Encoded(b"", 65_500, 65_500, "jpeg")
    with pytest.raises(BadImage, match="has 65500×65500 pixels, too many for --pixels"):
        pixels_of(huge)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({"encode": {"pixels": 0.5}}, 2),
        ({"encode": {"pixels": 0.0}}, 0),
        ({"encode": {"quality": 90}}, 0),
        ({"indexed": True, "kinds": {"jpeg": 1, "ppm": 2}}, 2),
        ({"indexed": True, "kinds": {"jpeg": 3}}, 0),
        ({}, 0),
    ],
)
def test_a_jpeg_that_has_the_size_of_pixels_is_not_counted_where_there_are_none(
    made: dict[str, object], expected: int
) -> None:
    rows = np.zeros(3, SAMPLE_DTYPE)
    rows["height"], rows["width"], rows["size"] = 32, 32, [3085, 3086, 3085]  # as CIFAR-10's
    assert stored_as_pixels(rows, made) == {"samples": expected, "bytes": expected * 3085}
