"""Shards at a URL → memory maps of files in the local cache. Background threads fetch them in the order of the plan.

`Fetcher` has the threads. `CachedShards` is for a cache that can hold the dataset: it downloads each whole shard once
and checks its sha256. For a smaller cache there is `window_reader`.
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np

from penstock.pipeline.config import DataConfig
from penstock.pipeline.reader import raise_file_limit
from penstock.shards.cache import Cache, cache_root
from penstock.shards.format import Split
from penstock.shards.remote import Store


class Mapped(NamedTuple):
    """A cached file's pages, and the same as (size,) uint8. The file stays in the cache as long as either exists."""

    pages: mmap.mmap
    data: np.ndarray


class Fetcher:
    """Threads that map files of the cache in the order of the requests, and download missing files.

    The first request starts the threads, also after a fork. They end with the program, whatever they wait for.
    """

    def __init__(self, split: Split, config: DataConfig) -> None:
        self.store = Store(split.url, config.store_timeout_s)
        self.cache = Cache(cache_root(config.cache_dir) / "shards", config.cache_bytes)
        self._num_threads = config.fetch_threads
        self.max_files = raise_file_limit() // 2  # that this process maps
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._condition = threading.Condition()
        self._jobs: deque[tuple[Future[Mapped], Callable[[], Mapped]]] = deque()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def fetch(self, name: str, size: int, make: Callable[[BinaryIO], object], first: bool = False) -> Future[Mapped]:
        """Request the map of a cached file of `size` bytes; `make` writes it if it is missing. `first`: before all
        waiting requests."""
        if self._process != os.getpid():
            self._start()
        future: Future[Mapped] = Future()
        job = future, partial(self._map, name, size, make)
        with self._condition:
            (self._jobs.appendleft if first else self._jobs.append)(job)
            if len(self._threads) < self._num_threads:
                self._threads.append(threading.Thread(target=self._work, daemon=True))
                self._threads[-1].start()
            self._condition.notify()
        return future

    def forget(self) -> None:
        """Drop the requests that no thread has started."""
        with self._condition:
            for future, _ in self._jobs:
                future.cancel()
            self._jobs.clear()

    def close(self) -> None:
        self.forget()
        with self._condition:
            self._closed = True
            self._threads.clear()
            self._condition.notify_all()

    def _work(self) -> None:
        condition, jobs = self._condition, self._jobs
        while True:
            with condition:
                condition.wait_for(lambda: jobs or self._closed)
                if self._closed:
                    return
                future, job = jobs.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:
                    future.set_exception(error)
            del future, job  # otherwise the map would live while this thread waits

    def _map(self, name: str, size: int, make: Callable[[BinaryIO], object]) -> Mapped:
        descriptor = self.cache.open(name, size, make)
        try:
            if os.fstat(descriptor).st_size != size:
                raise ValueError(f"{self.cache.root / name}: this cached file was changed; remove it")
            pages = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)  # duplicates the descriptor, and so the lock
        except OSError as error:
            raise ValueError(f"{self.cache.root / name}: cannot be mapped ({error.strerror})") from None
        finally:
            os.close(descriptor)
        return Mapped(pages, np.frombuffer(pages, dtype=np.uint8))


class CachedShards:
    """The shards of a split by number, mapped as they arrive. The cache can hold the whole dataset."""

    def __init__(self, split: Split, fetcher: Fetcher) -> None:
        self.split, self._fetcher = split, fetcher
        self._turn = object()
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()  # between the reading and the planning thread: a shard is requested once
        self._futures: dict[int, Future[Mapped]] = {}

    def follow(self, windows: Iterator[np.ndarray]) -> None:
        """Fetch the shards in the order in which these windows of samples, (n,) ids each, need them."""
        turn = self._turn = object()

        def plan() -> None:
            for sample_ids in windows:
                shards = self.split.samples["shard"][sample_ids]
                _, first = np.unique(shards, return_index=True)
                for shard in shards[np.sort(first)].tolist():
                    if self._turn is not turn:
                        return
                    self.fetch(shard)
                if len(self._futures) == len(self.split.shards):
                    return

        if len(self._futures) < len(self.split.shards):
            threading.Thread(target=plan, daemon=True).start()

    def fetch(self, shard: int, first: bool = False) -> Future[Mapped]:
        if self._process != os.getpid():
            self._start()
        with self._lock:
            future = self._futures.get(shard)
            if future is None:
                info = self.split.shards[shard]
                make = partial(self._fetcher.store.download, info.file, info.bytes, info.sha256)
                future = self._fetcher.fetch(f"{info.sha256}.tar", info.bytes, make, first)
                self._futures[shard] = future
            return future

    def is_there(self, shard: int) -> bool:
        """Whether `map` returns without waiting."""
        future = self._futures.get(shard)
        return future is not None and future.done()

    def map(self, shard: int) -> Mapped:
        """The map of a shard. Raises ValueError if it cannot be downloaded, or differs from the packed one."""
        return self.fetch(shard, first=True).result()

    def release(self, shard: int) -> None:
        self._futures.pop(shard, None)

    def close(self) -> None:
        self._turn = object()
        self._fetcher.close()
        self._futures.clear()
