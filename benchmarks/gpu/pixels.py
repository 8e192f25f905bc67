"""How far a loader's images are from an oracle's, in grey levels, while other kernels keep the device busy.

What a decoder rounds otherwise shows as a small mean. What it writes into memory still in use, or reads before it is
written, shows as a block that is wrong altogether: so the largest difference of a 16 × 16 block's mean counts too.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch.nn.functional import avg_pool2d

from benchmarks.programs import MIN_BATCHES, repeated
from pipeline.batch import Batch, Loader
from pipeline.build import build_loader
from pipeline.config import DataConfig
from pipeline.feed import Feed
from recipes import Recipe
from shards.format import ShardSet

BLOCK = 16
BUSY_SIDE, BUSY_PRODUCTS = 4096, 20  # 20 products of bf16 matrices: some 4 ms of an H100
# Grey levels, with fancy upsampling and without it. libjpeg-turbo with and without differ on 256 of these images by at
# most 5.0 in the mean of one, 7.1 in a block; two different images by 10 and 22 at least.
MAX_MEAN = {True: 2.0, False: 7.5}
MAX_BLOCK = {True: 8.0, False: 15.0}


class Difference(NamedTuple):
    """Grey levels of 255: the mean, of the worst image its mean, of the worst block its mean, the worst pixel."""

    mean: float
    worst_image: float
    worst_block: float
    worst_pixel: float

    def fits(self, fancy: bool) -> bool:
        return self.worst_image <= MAX_MEAN[fancy] and self.worst_block <= MAX_BLOCK[fancy]

    def __str__(self) -> str:
        return f"off by {self.mean:.2f}, an image {self.worst_image:.2f}, a block {self.worst_block:.1f}"


def open_loader(
    recipe: Recipe, dataset: ShardSet, name: str, batch_size: int, device: torch.device, threads: int
) -> Loader:
    """Of the training split, repeated to an epoch that is long enough to be timed."""
    feed = Feed(
        split=repeated(dataset.split("train"), MIN_BATCHES * batch_size),
        config=replace(recipe.data, loader=name),  # type: ignore[arg-type]
        augment=recipe.augment, batch_size=batch_size, global_batch_size=batch_size, seed=recipe.train.seed,
    )  # fmt: skip
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    return build_loader(feed, device=device, threads=threads, dtype=dtype)


def oracle(
    recipe: Recipe, dataset: ShardSet, batch_size: int, num_batches: int, device: torch.device, threads: int
) -> list[Batch]:
    """The same batches, the first of epoch 0, from the CPU: DALI's decoder there; where this is a CPU, Pillow's and
    torchvision's."""
    name, workers = ("dali", threads) if device.type == "cuda" else ("reference", 0)
    loader = open_loader(recipe, dataset, name, batch_size, torch.device("cpu"), workers)
    found = list(islice(loader.iter_epoch(0), num_batches))
    loader.close()
    return found


def difference(ours: Iterator[Batch], theirs: list[Batch], config: DataConfig, device: torch.device) -> Difference:
    """Compare batch by batch, each behind other work that is queued before it. Takes as many of `ours` as there are of
    `theirs`. Raises ValueError where the samples differ, or `ours` ends before."""
    std = torch.tensor(config.std, device=device)[:, None, None]
    side = BUSY_SIDE if device.type == "cuda" else 64
    busy = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    means, blocks, pixels = [], [], []
    for batch, expected in zip(islice(ours, len(theirs)), theirs, strict=True):
        if not torch.equal(batch.sample_ids, expected.sample_ids):
            raise ValueError("the two loaders' samples differ")
        for _ in range(BUSY_PRODUCTS):
            busy = torch.tanh(busy @ busy)
        apart = (batch.images.float() - expected.images.to(device).float()).abs() * std
        means.append(apart.mean(dim=(1, 2, 3)))
        blocks.append(avg_pool2d(apart.mean(dim=1, keepdim=True), BLOCK).amax())
        pixels.append(apart.amax())
        del batch  # its memory is soon another batch's, while the work on it is still queued
    image = torch.cat(means)
    return Difference(float(image.mean()), float(image.max()), float(torch.stack(blocks).max()),
                      float(torch.stack(pixels).max()))  # fmt: skip
