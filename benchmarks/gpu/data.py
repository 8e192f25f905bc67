"""The image sets of the stages: made here by Pillow and packed once a call, so that nothing else need be installed.

Pictures are `benchmarks.images`' 1/f noise; a kind says how they are encoded. What trains on batches that are made up
reads of a set only its table and its classes.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.images import picture, pink_texture
from shard_tools.encode import EncodeConfig
from shard_tools.workers import num_cpus
from shard_tools.writer import PackOptions, pack
from shards.format import INFO_FILE, ShardSet

QUALITY = 95
# kind → how Pillow saves it; "mixed" has each in turn
KINDS: dict[str, dict[str, Any]] = {
    "420": {"subsampling": 2}, "444": {"subsampling": 0}, "gray": {},
    "progressive": {"subsampling": 2, "progressive": True},
}  # fmt: skip


def packed(
    work: Path, kind: str, *, num_train: int, num_val: int, num_classes: int, side: int, width: int = 0
) -> ShardSet:
    """A set of `kind` ("mixed" or one of KINDS), images of `width` × `side` pixels or so, made in `work` unless there.

    Every class has an image, so `num_train` is at least `num_classes`.
    """
    width = width or side
    out = work / f"{kind}-{num_train}-{num_val}-{num_classes}-{width}x{side}"
    if not (out / INFO_FILE).exists():
        images = work / f"images-{out.name}"
        texture = pink_texture(max(64, side), np.random.default_rng(0))
        with ThreadPoolExecutor(num_cpus()) as pool:
            for split, count in (("train", num_train), ("val", num_val)):
                for label in range(min(count, num_classes)):
                    (images / split / f"class{label:04d}").mkdir(parents=True)

                def write(row: int, split: str = split) -> None:
                    path = images / split / f"class{row % num_classes:04d}" / f"{row:06d}.jpg"
                    path.write_bytes(jpeg(texture, kind, row, split, width, side))

                for _ in pool.map(write, range(count)):
                    pass
            # "header": nothing is decoded, which would take simplejpeg
            pack(images, out, PackOptions(encode=EncodeConfig(check="header"), samples_per_shard=1024), executor=pool)
    return ShardSet.open(out)


def jpeg(texture: np.ndarray, kind: str, row: int, split: str, width: int, height: int) -> bytes:
    """One JPEG, a function of its row and split; sides up to a quarter smaller, odd and even."""
    rng = np.random.default_rng([row, *split.encode()])
    height, width = (int(rng.integers(3 * side // 4, side + 1)) for side in (height, width))
    kind = sorted(KINDS)[row % len(KINDS)] if kind == "mixed" else kind
    image = Image.fromarray(picture(texture, width, height, rng))
    stream = io.BytesIO()
    (image.convert("L") if kind == "gray" else image).save(stream, "JPEG", quality=QUALITY, **KINDS[kind])
    return stream.getvalue()


def repacked(source: Path, out: Path, **encode: Any) -> ShardSet:
    """The images of a packed set, encoded anew (`shard_tools.encode.EncodeConfig`), in `out`."""
    if not (out / INFO_FILE).exists():
        with ThreadPoolExecutor(num_cpus()) as pool:
            pack(source, out, PackOptions(encode=EncodeConfig(**encode), samples_per_shard=250), executor=pool)
    return ShardSet.open(out)
