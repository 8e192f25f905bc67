"""The image sets of the stages: made here by Pillow and packed once a call, so that nothing else need be installed.

Pictures are `benchmarks.images`' 1/f noise; a kind says how they are encoded. What trains on batches that are made up
reads of a set only its table and its classes.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import images
from benchmarks.gpu.stage import Job
from shard_tools.encode import EncodeConfig
from shard_tools.workers import num_cpus
from shard_tools.writer import pack
from shards.format import INFO_FILE, ShardSet

ROOT = Path(__file__).parents[2]
QUALITY = 95
NUM_CLASSES = 1000  # of ImageNet
# kind → how Pillow saves it; "mixed" has each in turn
KINDS: dict[str, dict[str, int]] = {
    "420": {"subsampling": 2}, "444": {"subsampling": 0}, "gray": {},
    "progressive": {"subsampling": 2, "progressive": 1},
}  # fmt: skip


def packed(job: Job, kind: str, *, num_train: int, num_classes: int, side: int) -> ShardSet:
    """A set of `kind` ("mixed" or one of KINDS), its images at most `side` pixels wide and high, made unless there.

    Every class has an image, so `num_train` is at least `num_classes`.
    """
    out = job.work / f"{kind}-{num_train}-{num_classes}-{side}"
    if not (out / INFO_FILE).exists():
        folder, texture = job.work / f"images-{out.name}", images.pink_texture(max(64, side), np.random.default_rng(0))
        for split, count in (("train", num_train), ("val", 64)):
            for row in range(count):
                path = folder / split / f"class{row % num_classes:04d}" / f"{row:06d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(texture, kind, row, split, side))
        with ThreadPoolExecutor(num_cpus()) as pool:  # "header": nothing is decoded, which would take simplejpeg
            pack(folder, out, encode=EncodeConfig(check="header"), samples_per_shard=250, executor=pool)
    return ShardSet.open(out)


def jpeg(texture: np.ndarray, kind: str, row: int, split: str, side: int) -> bytes:
    """One JPEG, a function of its row and split; sides up to a quarter smaller, odd and even."""
    rng = np.random.default_rng([row, *split.encode()])
    height, width = (int(rng.integers(3 * side // 4, side + 1)) for _ in range(2))
    kind = sorted(KINDS)[row % len(KINDS)] if kind == "mixed" else kind
    image, stream = Image.fromarray(images.picture(texture, width, height, rng)), io.BytesIO()
    (image.convert("L") if kind == "gray" else image).save(stream, "JPEG", quality=QUALITY, **KINDS[kind])
    return stream.getvalue()


def small_set(job: Job) -> ShardSet:
    """What train.py runs on."""
    return packed(job, "444", num_train=job.scale.run_images, num_classes=10, side=40)


def originals(job: Job) -> ShardSet:
    """Those of --data, or JPEGs as heavy as ImageNet's, as `bench.py --data synthetic:469x401` makes and keeps them."""
    if job.data:
        return ShardSet.open(job.data)
    return ShardSet.open(images.ensure(job.scale.jpegs, job.work if job.rehearse else ROOT / images.FOLDER))
