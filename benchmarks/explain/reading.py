"""The stage "read": `DaliLoader` with its plan, read-ahead and views, but without its graph. It touches every page.

"read, disk": each turn first drops the shards from the page cache (for a large split, only the first shards). The turn
ends when each image was read once, or when its time is over. "read, cached": reads images from memory repeatedly.
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
PART_BYTES = 1 << 30  # of a larger split, only this many bytes are read


class Reader(DaliLoader):
    """This rank's batches of the training split's `part`, with empty images.

    The reader itself stands in for the loader's graph and for the graph's output. `views` and `arrays` hold the inputs
    that the graph would have received for the last batch: the encoded images, and the plan's arrays by name.
    """

    def __init__(self, setup: BenchSetup, min_batches: int = 1) -> None:
        """min_batches: the least number of batches in an epoch. The split's rows are repeated to reach it."""
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
        self.views = []  # views keep the maps open


def _touch(views: Sequence[np.ndarray]) -> None:
    for view in views:
        view[::PAGE].max()
        view[-1:].max()


class FromDisk:
    """ "read, disk" as a program.

    The kernel does not drop a page that a process has mapped, so no other reader of these shards may be open while this
    program runs.
    """

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
    """Return the first shards of a split, up to `PART_BYTES` but at least one. A split at a URL is returned whole."""
    number, total = 0, 0
    while number < len(split.shards) and (not number or total + split.shards[number].bytes <= PART_BYTES):
        total += split.shards[number].bytes
        number += 1
    if split.url or number == len(split.shards):
        return split
    return replace(split, shards=split.shards[:number], samples=split.samples[split.samples["shard"] < number])


def fits_in_memory(split: Split) -> bool:
    """Return whether the page cache can hold all shards."""
    return sum(info.bytes for info in split.shards) < available_bytes()


def load(split: Split) -> None:
    """Read the shards into the page cache."""
    for shard in range(len(split.shards)):
        with open(split.shard_path(shard), "rb") as file:
            while file.read(1 << 24):
                pass


def drop(split: Split) -> None:
    """Drop the shards from the page cache."""
    for shard in range(len(split.shards)):
        with open(split.shard_path(shard), "rb") as file:
            os.fsync(file.fileno())  # dirty pages are not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
