"""The measuring itself: a loader, alone or with training steps, run for some seconds → images/s. `bench.py` asks."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from engine.learner import build_learner
from engine.loaders import image_dtype
from pipeline.batch import Batch, Loader
from pipeline.build import build_loader, threads_per_rank
from pipeline.feed import Feed
from pipeline.mixing import Mixer
from recipes import Recipe
from shard_tools.format import ShardSet, Split
from train import train_step
from training.distributed import World

SETTLE_BATCHES = 8  # taken before each repeat is timed: what was decoded ahead while another program ran is no gain
MIN_BATCHES = 200  # an epoch's length at least, so that filling the pipeline at its start is no part of the figure


class Sample(NamedTuple):
    """One repeat of one program."""

    images_per_s: float
    data_wait: float  # share of the time spent waiting for the loader, 0 to 1


def run_for(
    seconds: float, batches: Iterator[Batch], consume: Callable[[Iterator[Batch]], object], device: torch.device
) -> Sample:
    """Call `consume`, which takes batches and works on them, again and again; count the images that went by."""
    for _ in range(SETTLE_BATCHES):
        next(batches)
    num_images, wait_s = 0, 0.0

    def timed() -> Iterator[Batch]:
        nonlocal num_images, wait_s
        while True:
            before = time.perf_counter()
            batch = next(batches)
            wait_s += time.perf_counter() - before
            num_images += len(batch.labels)
            yield batch

    counted = timed()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        consume(counted)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
    return Sample(num_images / elapsed, wait_s / elapsed)


def endless(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.iter_epoch(epoch)
        epoch += 1


def repeated(split: Split, num_rows: int) -> Split:
    """The split with its table's rows repeated to at least `num_rows`: the same images, a longer epoch."""
    return replace(split, samples=np.tile(split.samples, -(-num_rows // len(split))))


def summary(samples: list[Sample]) -> dict[str, float]:
    rates = [sample.images_per_s for sample in samples]
    return {
        "images_per_s": statistics.median(rates),
        "images_per_s_min": min(rates),
        "images_per_s_max": max(rates),
        "data_wait": statistics.median(sample.data_wait for sample in samples),
    }


def program(
    kind: str, name: str, recipe: Recipe, dataset: ShardSet, world: World, batch_size: int
) -> tuple[Loader, Callable[[float], Sample]]:
    """A loader, and what runs it for some seconds."""
    split = dataset.split(recipe.data.train_split)
    feed = Feed(
        split=repeated(split, MIN_BATCHES * batch_size),
        config=replace(recipe.data, loader=name),  # type: ignore[arg-type]
        augment=recipe.augment,
        batch_size=batch_size,
        global_batch_size=batch_size,
        seed=recipe.train.seed,
    )
    threads = threads_per_rank(recipe.data.threads, world.local_world_size)
    loader = build_loader(feed, device=world.device, threads=threads, dtype=image_dtype(recipe, world))
    batches = endless(loader)
    if kind == "loader":
        return loader, lambda seconds: run_for(seconds, batches, next, world.device)
    train_config = replace(recipe.train, accumulation=1)
    learner = build_learner(recipe, len(dataset.classes), world)
    batches = Mixer(recipe.augment, len(dataset.classes), seed=recipe.train.seed).mixed(batches, loader)
    learner.net.train()
    return loader, lambda seconds: run_for(
        seconds, batches, lambda taken: train_step(learner, taken, train_config), world.device
    )
