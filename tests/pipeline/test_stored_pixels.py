"""Pixels in shards equal the output of DALI's CPU decoder, and DALI reads them as stored."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from penstock.pipeline.config import DataConfig
from penstock.pipeline.probe import Decoder, bad_header
from penstock.shard_tools.encode import encode, pixels_of
from penstock.shard_tools.preview import preview
from penstock.shards.ppm import to_ppm

SIZES = [(1, 1), (17, 3), (3, 17), (1, 40), (40, 1), (16, 16), (33, 47), (123, 78)]


def pillow(mode: str = "RGB", **options: object) -> Callable[[Image.Image], bytes]:
    def save(image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "JPEG", quality=85, **options)
        return buffer.getvalue()

    return save


def turbo(subsampling: str) -> Callable[[Image.Image], bytes]:
    return lambda image: simplejpeg.encode_jpeg(np.ascontiguousarray(image), 85, "rgb", subsampling)


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "gray": pillow("L"),
    "gray with a factor": pillow("L", subsampling=2),
    "gray progressive": pillow("L", progressive=True),
    "RGB in the file": pillow(keep_rgb=True),
    "restarts": pillow(restart_marker_rows=1),
    "unknown JFIF revision": lambda image: pillow()(image).replace(b"JFIF\0\1", b"JFIF\0\7", 1),
    **{f"progressive {i}": pillow(progressive=True, subsampling=i) for i in range(3)},
    **{name: turbo(name) for name in ("444", "422", "420", "440", "411")},
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(DataConfig())


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_pixels_are_dalis_and_pillows_of_the_jpeg(decoder: Decoder, kind: str, noise: bool) -> None:
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        shape = (height, width, 3) if noise else (3, 3, 3)
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        encoded = encode(KINDS[kind](image))
        assert encoded.kind == "jpeg"
        pixels = pixels_of(encoded)
        assert (pixels == decoder.pixels(np.frombuffer(encoded.jpeg, np.uint8), height, width)).all()
        assert (pixels == np.asarray(Image.open(io.BytesIO(encoded.jpeg)).convert("RGB"))).all()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_dali_reads_stored_pixels_whole_and_by_regions(decoder: Decoder, height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    data = np.frombuffer(to_ppm(pixels), np.uint8)
    assert bad_header(data, height, width) is None
    assert bad_header(data, height + 1, width) == f"is {height}×{width} pixels, the table says {height + 1}×{width}"
    assert (decoder.pixels(data, height, width) == pixels).all()
    for _ in range(20):
        top, left = rng.integers(0, [height, width], dtype=np.int32)
        rows, columns = rng.integers(1, [height - top + 1, width - left + 1], dtype=np.int32)
        found = decoder.run(data, np.array([top, left]), np.array([rows, columns]))
        assert (np.array(found.as_cpu().at(0)) == pixels[top : top + rows, left : left + columns]).all()


def test_a_stored_image_cut_short_is_refused(decoder: Decoder) -> None:
    data = np.frombuffer(to_ppm(np.zeros((20, 30, 3), np.uint8)), np.uint8)
    assert "Failed to get image info" in (bad_header(data[:9], 20, 30) or "")
    with pytest.raises(ValueError, match="Failed to decode"):
        decoder.pixels(data[:-1], 20, 30)


def test_a_preview_shows_the_same(dataset_dir: Path, mixed_dir: Path, tmp_path: Path) -> None:
    """With augmentations they went through the training loader."""
    for augment in (None, "rn50-90ep"):
        sheets = []
        for root in (dataset_dir, mixed_dir):
            preview(root, tmp_path / "sheet.png", num=6, augment=augment)
            sheets.append((tmp_path / "sheet.png").read_bytes())
        assert sheets[0] == sheets[1]
