"""A small packed dataset for the tests: generated JPEGs of varied sizes, packed once a session by `shard_tools`."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard_tools.writer import PackOptions, pack
from shards.format import ShardSet

# What takes minutes, or repeats with another number what a daily test does.
LONG = pytest.mark.skipif(not os.environ.get("PENSTOCK_LONG"), reason="not every day: set PENSTOCK_LONG=1")

NUM_TRAIN = 90
# (height, width): odd and even, square, tall, wide, extreme, smaller and larger than a crop
VAL_SIZES = [
    (64, 64), (65, 65), (80, 121), (121, 80), (97, 300), (301, 96), (20, 33), (33, 20), (15, 15), (256, 341),
    (341, 255), (500, 375), (40, 400), (400, 41), (127, 128), (128, 127), (48, 49), (333, 500), (70, 71),
]  # fmt: skip


def picture(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Colour gradients, a hard-edged box, and a little noise."""
    coarse = rng.integers(0, 256, (int(rng.integers(3, 7)), int(rng.integers(3, 7)), 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    top, left = int(rng.integers(height)), int(rng.integers(width))
    pixels[top : top + height // 3, left : left + width // 3] = rng.integers(0, 256, 3)
    pixels += rng.normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def write_tree(root: Path, seed: int = 0) -> None:
    """An ImageFolder tree: three classes, `NUM_TRAIN` training images, one validation image for each of `VAL_SIZES`.

    Some are gray, progressive, or with chroma at half resolution, as photographs are.
    """
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(24, 180)), int(rng.integers(24, 180))) for _ in range(NUM_TRAIN)]
    for split, split_sizes in (("train", sizes), ("val", VAL_SIZES)):
        for i, (height, width) in enumerate(split_sizes):
            image = picture(height, width, rng)
            path = root / split / f"class{i % 3}" / f"{i:03d}_{height}x{width}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if i % 11 == 10:
                image = image.convert("L")
            image.save(path, quality=90, subsampling=2 if i % 4 == 3 else 0, progressive=i % 7 == 6)


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source images; read only."""
    root = tmp_path_factory.mktemp("images")
    write_tree(root)
    return root


@pytest.fixture(scope="session")
def dataset_dir(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed dataset, several shards a split; read only."""
    out = tmp_path_factory.mktemp("packed") / "data"
    with ThreadPoolExecutor(1) as executor:
        pack(image_tree, out, PackOptions(samples_per_shard=25), executor=executor)
    return out


@pytest.fixture(scope="session")
def dataset(dataset_dir: Path) -> ShardSet:
    return ShardSet.open(dataset_dir)


@pytest.fixture
def dataset_copy(dataset_dir: Path, tmp_path: Path) -> Path:
    """A copy of the packed dataset that a test may damage."""
    return Path(shutil.copytree(dataset_dir, tmp_path / "copy"))


@pytest.fixture
def damage() -> Callable[[ShardSet, str, int, bytes], None]:
    """`damage(shard_set, split, sample_id, data)`: overwrite a sample's bytes, zero-padded, in its tar."""

    def overwrite(shard_set: ShardSet, split: str, sample_id: int, data: bytes) -> None:
        row = shard_set.split(split).samples[sample_id]
        size = int(row["size"])
        with open(shard_set.split(split).shard_path(int(row["shard"])), "r+b") as file:
            file.seek(int(row["offset"]))
            file.write(data[:size].ljust(size, b"\0"))

    return overwrite
