"""The programs of `bench.py`: batches of a loader, alone or with training steps, and copies of a batch to the GPU.

Each is a `measure.Program`. On a GPU the time is measured between two CUDA events, the second one after the last work.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from typing import Literal

import numpy as np
import torch

from penstock.benchmarks.measure import Sample
from penstock.pipeline.batch import Batch, Loader
from penstock.pipeline.build import build_loader, threads_per_rank
from penstock.pipeline.feed import Feed
from penstock.pipeline.mixing import Mixer
from penstock.pipeline.pixel_loader import PixelLoader
from penstock.recipes import Recipe
from penstock.shards.format import ShardSet, Split
from penstock.training import clock, distributed
from penstock.training.data import image_dtype
from penstock.training.distributed import World
from penstock.training.learner import build_learner
from penstock.training.step import train_step

Kind = Literal["loader", "compute", "train"]

SETTLE_BATCHES = 8  # thrown away before each repeat: they were decoded ahead while another program ran
MIN_BATCHES = 200  # least length of an epoch, to keep the filling of the pipeline at its start out of the figure


class Stopwatch:
    """Seconds since it was created: by the CPU's clock, or on a GPU between two events.

    `wait_s` and `num_batches` describe the batches passed through `timed`. `left_s` is how long a GPU still had to work
    when the last `lap` was called.
    """

    left_s = 0.0

    def __init__(self, device: torch.device) -> None:
        self._device, self._started, self._begin = device, time.perf_counter(), clock.mark(device)
        self._waits: list[tuple[clock.Mark, clock.Mark]] = []

    def running(self) -> float:
        """Return the seconds so far by the CPU's clock, without waiting for the GPU."""
        return time.perf_counter() - self._started

    def lap(self) -> float:
        """Wait until the device has finished all its work, and return the seconds so far."""
        asked, end = time.perf_counter(), clock.mark(self._device)
        clock.wait_for(end)
        if self._device.type == "cuda":
            self.left_s = time.perf_counter() - asked
        return clock.seconds(self._begin, end)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the same batches, and record each wait. On a GPU that is its idle time, as in `training.step_log`."""
        while True:
            begin = clock.mark(self._device)
            batch = next(batches)
            self._waits.append((begin, clock.mark(self._device)))
            yield batch

    @property
    def num_batches(self) -> int:
        return len(self._waits)

    @property
    def wait_s(self) -> float:
        """The time spent waiting for batches. Valid after `lap`."""
        return sum(clock.seconds(*wait) for wait in self._waits)


class BatchProgram:
    """Work on batches. `work` takes as many batches as it needs from the iterator that it gets.

    mixed: applied to the batches first. Its time counts as work, not as waiting for data.
    tied: the world, if its ranks work in step as under DDP. Rank 0 then sets the number of steps in a repeat, which
        keeps a rank from waiting for a step that another does not make.
    settle_batches: thrown away before each repeat.
    first_batch_s: the time to build the loader and get its first batch; None before the first batch.
    """

    first_batch_s: float | None = None
    settle_batches: int = SETTLE_BATCHES

    def __init__(
        self,
        name: str,
        batches: Iterator[Batch],
        work: Callable[[Iterator[Batch]], object],
        device: torch.device,
        close: Callable[[], None] = lambda: None,
        tied: World | None = None,
        mixed: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
    ) -> None:
        self.name, self.work, self.close, self.tied, self.mixed = name, work, close, tied, mixed
        self._batches, self._device = batches, device
        self._step_s = 0.0  # seconds per step in the previous repeat

    def run(self, seconds: float) -> Sample:
        for _ in range(self.settle_batches):
            next(self._batches)
        num_images, watch = 0, Stopwatch(self._device)

        def counted() -> Iterator[Batch]:
            nonlocal num_images
            for batch in watch.timed(self._batches):
                num_images += len(batch.labels)
                yield batch

        batches = self.mixed(counted())
        if self.tied:
            elapsed = self._steps(batches, watch, seconds, self.tied)
        else:
            while watch.running() < seconds:
                self.work(batches)
            elapsed = watch.lap()
        ahead = watch.left_s * watch.num_batches / elapsed
        return Sample(num_images / elapsed, watch.wait_s / elapsed, ahead)

    def _steps(self, batches: Iterator[Batch], watch: Stopwatch, seconds: float, world: World) -> float:
        """Make as many steps on each rank as take `seconds` on rank 0, within a tenth. Returns the seconds taken."""
        done, left = 0, seconds
        while not done or left > 0.1 * seconds:
            num_steps = round(left / self._step_s) if self._step_s else 1
            for _ in range(int(distributed.from_rank_0(max(1, num_steps), world))):
                self.work(batches)
                done += 1
            elapsed = watch.lap()
            self._step_s, left = elapsed / done, distributed.from_rank_0(seconds - elapsed, world)
        return elapsed


def build(kind: Kind, name: str, recipe: Recipe, dataset: ShardSet, world: World, batch_size: int) -> BatchProgram:
    """Build a program that throws away the batches of loader `name`, or trains on them. `batch_size` is per rank.

    With several ranks each has its share of the samples, and training is in step.
    """
    started = time.perf_counter()
    feed = Feed(
        split=repeated(dataset.split(recipe.data.train_split), MIN_BATCHES * batch_size * world.world_size),
        config=replace(recipe.data, loader=name),  # type: ignore[arg-type]
        augment=recipe.augment,
        batch_size=batch_size,
        global_batch_size=batch_size * world.world_size,
        seed=recipe.train.seed,
        rank=world.rank,
        world_size=world.world_size,
        local_world_size=world.local_world_size,
    )
    threads = threads_per_rank(recipe.data.threads, world.local_world_size)
    loader = build_loader(feed, device=world.device, threads=threads, dtype=image_dtype(recipe, world))
    if isinstance(loader, PixelLoader):
        loader.load()  # the second and later epochs are timed
    build_s = time.perf_counter() - started

    def batches() -> Iterator[Batch]:
        asked = time.perf_counter()
        for batch in endless(loader):
            if program.first_batch_s is None:
                program.first_batch_s = build_s + time.perf_counter() - asked
            yield batch

    program = BatchProgram(name, batches(), next, world.device, loader.close)
    if kind != "loader":
        train_config = replace(recipe.train, accumulation=1)
        learner = build_learner(recipe, len(dataset.classes), world)
        learner.net.train()
        program.work = lambda taken: train_step(learner, taken, train_config)
        program.mixed = Mixer(recipe.augment, len(dataset.classes), seed=recipe.train.seed, rank=world.rank).mixed
        program.tied = world if world.world_size > 1 else None
    return program


def build_copies(recipe: Recipe, dataset: ShardSet, world: World, batch_size: int, pinned: bool = True) -> BatchProgram:
    """Build a program that copies one batch to the GPU, from pinned or pageable memory."""
    config = replace(recipe.data, loader="synthetic")
    split = repeated(dataset.split(recipe.data.train_split), batch_size)
    feed = Feed(
        split=split, config=config, augment=recipe.augment, batch_size=batch_size, global_batch_size=batch_size
    )  # fmt: skip
    loader = build_loader(feed, device=torch.device("cpu"), threads=1, dtype=image_dtype(recipe, world))
    batch = next(loader.iter_epoch(0))
    if pinned:
        batch = replace(batch, images=batch.images.pin_memory(), labels=batch.labels.pin_memory())
    images, labels = (torch.empty_like(part, device=world.device) for part in (batch.images, batch.labels))

    def copy(taken: Iterator[Batch]) -> None:
        there = next(taken)
        images.copy_(there.images, non_blocking=True)
        labels.copy_(there.labels, non_blocking=True)

    return BatchProgram("pinned" if pinned else "pageable", repeat(batch), copy, world.device)


def image_bytes(recipe: Recipe, world: World) -> int:
    """Return the number of bytes copied for one image and its label."""
    return 3 * recipe.data.image_size**2 * image_dtype(recipe, world).itemsize + torch.int64.itemsize


def endless(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.iter_epoch(epoch)
        epoch += 1


def repeated(split: Split, num_rows: int) -> Split:
    """Return the split with its rows repeated to at least `num_rows`: the same images in a longer epoch."""
    if len(split) >= num_rows:
        return split
    return replace(split, samples=np.tile(split.samples, -(-num_rows // len(split))))
