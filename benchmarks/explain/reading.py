"""The stage "read": `DaliLoader` with its plan, read-ahead and views, but without its graph; every page is touched.

"read, disk": each turn begins with the shards (of a large split, the first) out of the page cache, and ends when each
image was read once, or its time is over. "read, cached": images from memory, again and again.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from penstock.benchmarks.measure import Sample
from penstock.benchmarks.options import BenchSetup
from penstock.benchmarks.programs import Stopwatch, repeated
from penstock.pipeline.augment.params import AugmentParams, Name
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.memory import available_bytes
from penstock.shards.format import Split
from penstock.training import distributed

DISK, CACHED = "read, disk", "read, cached"
PAGE = 4096
PART_BYTES = 1 << 30  # of a larger split so many bytes are read


class Reader(DaliLoader):
    """This rank's batches of the training split's `part`, with empty images: the place of the loader's graph, and of
    what that gives, takes the reader itself. `views`, `arrays`: what the graph would have been given, the encoded
    images and the plan's arrays by name, of the last batch."""

    def __init__(self, setup: BenchSetup, min_batches: int = 1) -> None:
        """min_batches: of an epoch; the split's rows are repeated to so many."""
        recipe, world = setup.recipe, setup.world
        split = part(setup.dataset.split(recipe.data.train_split))
        global_batch_size = setup.batch_size * world.world_size
        feed = Feed(
            split=repeated(split, min_batches * global_batch_size), config=replace(recipe.data, cache="none"),
            augment=recipe.augment, batch_size=setup.batch_size, global_batch_size=global_batch_size,
            seed=recipe.train.seed, rank=world.rank, world_size=world.world_size,
            local_world_size=world.local_world_size,
        )  # fmt: skip
        super().__init__(feed, device=world.device, threads=setup.threads)
        self._pool = ThreadPoolExecutor(setup.threads)

    def _build_pipe(self, names: tuple[Name, ...]) -> "Reader":
        self._names = names
        return self

    def run(self, stream: object) -> "tuple[Reader]":
        encoded, *arrays = self._next_inputs()
        self.views = [np.asarray(encoded[place]) for place in range(len(encoded))]  # no copies, as `at` makes
        self.arrays: AugmentParams = dict(zip(self._names, arrays, strict=True))
        for _ in self._pool.map(_touch, (self.views[first :: self.threads] for first in range(self.threads))):
            pass
        return (self,)

    def as_tensor(self) -> torch.Tensor:
        return torch.empty(len(self.views), 1, 1, 3)

    def reset(self) -> None: ...

    def close(self) -> None:
        super().close()
        self._pool.shutdown()
        self.views = []  # which keep the maps


def _touch(views: Sequence[np.ndarray]) -> None:
    for view in views:
        view[::PAGE].max()
        view[-1:].max()


class FromDisk:
    """ "read, disk" as a program. The kernel drops no page that a process has mapped: while it runs, no other reader of
    these shards may be open."""

    name = DISK

    def __init__(self, setup: BenchSetup) -> None:
        self._setup = setup

    def run(self, seconds: float) -> Sample:
        num_images = 0
        with closing(Reader(self._setup)) as reader:
            distributed.barrier()  # the other ranks have closed their readers too
            drop(reader.feed.split)
            distributed.barrier()
            watch = Stopwatch(torch.device("cpu"))
            for batch in reader.iter_epoch(0):
                num_images += len(batch.labels)
                if watch.running() > seconds:
                    break
            return Sample(num_images / watch.lap())

    def close(self) -> None: ...


def part(split: Split) -> Split:
    """The first shards of a split, up to `PART_BYTES`, one at least; all of a split at a URL."""
    number, total = 0, 0
    while number < len(split.shards) and (not number or total + split.shards[number].bytes <= PART_BYTES):
        total += split.shards[number].bytes
        number += 1
    if split.url or number == len(split.shards):
        return split
    return replace(split, shards=split.shards[:number], samples=split.samples[split.samples["shard"] < number])


def fits_in_memory(split: Split) -> bool:
    """Whether the page cache can hold all shards."""
    return sum(info.bytes for info in split.shards) < available_bytes()


def load(split: Split) -> None:
    """Have the shards in the page cache."""
    for shard in range(len(split.shards)):
        with open(split.shard_path(shard), "rb") as file:
            while file.read(1 << 24):
                pass


def drop(split: Split) -> None:
    """Drop the shards from the page cache."""
    for shard in range(len(split.shards)):
        with open(split.shard_path(shard), "rb") as file:
            os.fsync(file.fileno())  # what is not written yet is not dropped either
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
