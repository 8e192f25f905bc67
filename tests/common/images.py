"""Generated pictures, and an ImageFolder tree of them, which most tests pack and train on."""

from pathlib import Path

import numpy as np
from PIL import Image

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
