"""The image sets of the stages: a small one that needs only Pillow, and one of JPEGs as heavy as ImageNet's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from penstock.benchmarks import images
from penstock.benchmarks.gpu.stage import Job
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.workers import num_cpus
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import INFO_FILE, ShardSet

ROOT = Path(__file__).resolve().parents[2]
NUM_CLASSES = 1000  # of ImageNet
NUM_VAL = 64


def small_set(job: Job, num_train: int, num_classes: int = 10) -> ShardSet:
    """Return a set of small images of 1/f noise, about 40 px, packed once per run of the command.

    Every class must have an image, so `num_train` must be at least `num_classes`. Training on synthetic batches reads
    only the set's table and classes.
    """
    out = job.work / f"small-{num_train}-{num_classes}"
    if not (out / INFO_FILE).exists():
        folder, rng = job.work / f"images-{out.name}", np.random.default_rng(0)
        texture = images.pink_texture(64, rng)
        for split, count in (("train", num_train), ("val", NUM_VAL)):
            for row in range(count):
                path = folder / split / f"class{row % num_classes:04d}" / f"{row:06d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                height, width = rng.integers(30, 41, size=2).tolist()
                Image.fromarray(images.picture(texture, width, height, rng)).save(path, quality=95, subsampling=0)
        with ThreadPoolExecutor(num_cpus()) as pool:  # "header" decodes nothing; decoding needs simplejpeg
            pack(folder, out, PackOptions(encode=EncodeConfig(check="header")), executor=pool)
    return ShardSet.open(out)


def originals(job: Job) -> ShardSet:
    """Return the set of --data, or JPEGs as heavy as ImageNet's, made as by `bench.py --data synthetic:469x401`."""
    if job.data:
        return ShardSet.open(job.data)
    return ShardSet.open(images.ensure(job.scale.jpegs, job.work if job.rehearse else ROOT / images.FOLDER))
