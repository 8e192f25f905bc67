"""The stage "read": `DaliLoader` as it is, without its graph. The plan, read-ahead, views, every page touched.

Pages are touched by as many threads as decode. "read, disk": the shards (of a large split, the first) are out of the
page cache when a turn begins, and it ends when each image was read once; then they are loaded again. "read, cached":
the same images from memory, again and again.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from benchmarks.explain import page_cache
from benchmarks.explain.stages import training_feed
from benchmarks.measure import Sample
from benchmarks.options import Setup
from benchmarks.programs import MIN_BATCHES, BatchProgram, Stopwatch, endless
from pipeline.feed import Feed
from pipeline.loader import DaliLoader
from shards.format import Split

DISK, CACHED = "read, disk", "read, cached"
PAGE = 4096


class Reading:
    """The stage as a program. `stayed`: the share of the shards' pages that stayed in memory when they were
    dropped, for each turn; only for DISK."""

    def __init__(self, on: Setup, split: Split, cold: bool) -> None:
        self.name = DISK if cold else CACHED
        self.stayed: list[float] = []
        self._cold, self._world = cold, on.world
        self._split = split
        feed = training_feed(on, split, 1 if cold else MIN_BATCHES)
        if cold:
            feed = replace(feed, config=replace(feed.config, cache="none"))
        self._loader = _Reader(feed, on.world.device, on.threads)
        self._warm = BatchProgram(self.name, endless(self._loader), next, torch.device("cpu"))

    def run(self, seconds: float) -> Sample:
        return self._once(seconds) if self._cold else self._warm.run(seconds)

    def _once(self, seconds: float) -> Sample:
        self.stayed.append(page_cache.drop(self._split, self._world))
        num_images, watch = 0, Stopwatch(torch.device("cpu"))
        for batch in self._loader.iter_epoch(0):
            num_images += len(batch.labels)
            if watch.running() > seconds:
                break
        elapsed = watch.lap()
        page_cache.restore(self._split, self._world)
        return Sample(num_images / elapsed)

    def close(self) -> None:
        self._loader.close()


class _Reader(DaliLoader):
    """With a `_Toucher` for a graph; `touching`: threads that touch pages."""

    def __init__(self, feed: Feed, device: torch.device, touching: int) -> None:
        super().__init__(feed, device=device, threads=1)
        self._pool, self._touching = ThreadPoolExecutor(touching), touching

    def _build_pipe(self, names: tuple[str, ...], image_size: int) -> "_Toucher":
        return _Toucher(self._touch_next)

    def _touch_next(self) -> int:
        encoded, *_ = self._next_inputs()
        views = [np.asarray(encoded[place]) for place in range(len(encoded))]  # no copies, as `at` makes
        for _ in self._pool.map(_touch, (views[part :: self._touching] for part in range(self._touching))):
            pass
        return len(views)

    def close(self) -> None:
        super().close()
        self._pool.shutdown()


class _Toucher:
    """Stands where the loader has its graph: has each page of a batch touched, and gives empty images."""

    def __init__(self, touch: Callable[[], int]) -> None:
        self._touch, self._num_images = touch, 0

    def run(self, stream: object) -> "tuple[_Toucher]":
        self._num_images = self._touch()
        return (self,)

    def as_tensor(self) -> torch.Tensor:
        return torch.empty(self._num_images, 1, 1, 3)

    def reset(self) -> None: ...


def _touch(views: Sequence[np.ndarray]) -> None:
    for view in views:
        view[::PAGE].max()
        view[-1:].max()
