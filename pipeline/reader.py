"""Sample ids → zero-copy views on memory-mapped shards, with read-ahead.

`open_reader` returns the reader for shards on a disk or at a URL (see `storage` and `window_reader`).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penstock.pipeline import bus_error
from penstock.pipeline.feed import Feed
from penstock.pipeline.memory import available_bytes
from penstock.shards.format import Split
from penstock.shards.program import SHARD_TOOLS

if TYPE_CHECKING:
    from penstock.pipeline.storage import CachedShards
    from penstock.pipeline.window_reader import WindowReader

_PAGE = mmap.PAGESIZE


def open_reader(feed: Feed) -> "ShardReader | WindowReader":
    """Open the reader for a feed's samples.

    Raises:
        ValueError: see the readers; also if the order needs all shards at once and the cache cannot hold them.
    """
    split, in_memory = feed.split, feed.config.cache == "encoded"
    if not split.url:
        return ShardReader(split, in_memory)
    # Imported here, since they need modules that Windows lacks.
    from penstock.pipeline.storage import CachedShards, Fetcher
    from penstock.pipeline.window_reader import WindowReader

    fetcher = Fetcher(split, feed.config)
    if in_memory or fetcher.cache.max_bytes >= split.dataset_bytes:
        return ShardReader(split, in_memory, CachedShards(split, fetcher))
    if feed.plan(0).order == "global":
        raise ValueError(
            f'{split.url}: data.order = "global" reads all shards at once, {split.dataset_bytes} bytes, but '
            f"data.cache_bytes is {fetcher.cache.max_bytes} ({fetcher.cache.root}); raise it, or set "
            'data.order = "block"'
        )
    return WindowReader(feed, fetcher)


def raise_file_limit() -> int:
    """Raise this process's limit of open files to the maximum, and return it. A memory map holds a descriptor, and a
    large dataset has more shards than the usual soft limit of 1,024."""
    try:
        import resource
    except ImportError:  # Windows has a different limit
        return 1 << 20
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class ShardReader:
    """The encoded bytes of one split's samples. Shards are mapped at first use and stay mapped until `close`.

    Views are valid while the reader is open. Page faults occur in the thread that reads the bytes. With `in_memory` the
    constructor reads whole shards into memory instead. With `remote` they are mapped in the cache, as they arrive.

    Raises:
        ValueError: a shard is missing, cannot be read or has another size; or the memory is too small for all of them.
    """

    def __init__(self, split: Split, in_memory: bool = False, remote: "CachedShards | None" = None) -> None:
        self.split, self._remote = split, remote
        self._maps: dict[int, tuple[mmap.mmap | None, np.ndarray]] = {}  # None: in memory
        raise_file_limit()
        if not remote:
            self._check_sizes()
        if in_memory:
            self._load()

    def _check_sizes(self) -> None:
        for shard, info in enumerate(self.split.shards):
            path = self.split.shard_path(shard)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ValueError(f"{path}: cannot read this shard ({error.strerror}); pack the dataset again") from None
            if size != info.bytes:
                raise ValueError(
                    f"{path}: has {size} bytes, but dataset.json lists {info.bytes}; "
                    f"find what is wrong with: {SHARD_TOOLS} verify {self.split.root}"
                )

    def _load(self) -> None:
        need, free = sum(info.bytes for info in self.split.shards), available_bytes()
        if need > free:
            raise ValueError(
                f'{self.split.root}: data.cache = "encoded" needs {need / 1e9:.1f} GB for split {self.split.name!r}, '
                f'but {free / 1e9:.1f} GB are free; set data.cache = "none"'
            )
        for shard in range(len(self.split.shards)):
            if self._remote:
                self._maps[shard] = None, np.array(self._remote.map(shard).data)
                self._remote.release(shard)
                continue
            path = self.split.shard_path(shard)
            try:
                self._maps[shard] = None, np.fromfile(path, dtype=np.uint8)
            except OSError as error:
                raise ValueError(f"{path}: cannot read this shard ({error.strerror})") from None

    def views(self, sample_ids: np.ndarray) -> list[np.ndarray]:
        """(n,) sample ids → n read-only (size,) uint8 views, without a copy."""
        rows = self.split.rows(sample_ids)
        shards, starts = rows["shard"].tolist(), rows["offset"].astype(np.int64)
        ends = (starts + rows["size"]).tolist()
        return [
            self._shard(shard)[1][start:end] for shard, start, end in zip(shards, starts.tolist(), ends, strict=True)
        ]

    def follow(self, windows: Iterator[np.ndarray]) -> None:
        """Fetch remote shards in the order in which these windows of samples, (n,) ids each, need them."""
        if self._remote and len(self._maps) < len(self.split.shards):
            self._remote.follow(windows)

    def read_ahead(self, sample_ids: np.ndarray, gap_bytes: int = 0) -> None:
        """Ask the kernel to read these samples' pages into memory. Adjacent samples become one request, also those with
        up to `gap_bytes` between them; the gap is then read, too."""
        rows = self.split.rows(sample_ids)
        rows = rows[np.lexsort((rows["offset"], rows["shard"]))]
        if not len(rows):
            return
        shards = rows["shard"].astype(np.int64)
        first = rows["offset"].astype(np.int64) // _PAGE
        last = (rows["offset"].astype(np.int64) + rows["size"] - 1) // _PAGE
        new_run = np.ones(len(rows), bool)
        new_run[1:] = (shards[1:] != shards[:-1]) | (first[1:] > last[:-1] + 1 + gap_bytes // _PAGE)
        begins = np.flatnonzero(new_run)
        ends = np.append(begins[1:], len(rows)) - 1
        for shard, page, stop in zip(
            shards[begins].tolist(), first[begins].tolist(), (last[ends] + 1).tolist(), strict=True
        ):
            if self._remote and not self._remote.is_there(shard):
                continue
            pages = self._shard(shard)[0]
            if pages is not None and hasattr(pages, "madvise"):  # not yet in memory; Windows has no madvise
                pages.madvise(mmap.MADV_WILLNEED, page * _PAGE, (stop - page) * _PAGE)

    def _shard(self, shard: int) -> tuple[mmap.mmap | None, np.ndarray]:
        if shard not in self._maps:
            self._maps[shard] = self._remote.map(shard) if self._remote else _map(self.split.shard_path(shard))
        return self._maps[shard]

    def end_epoch(self) -> None:
        """End an epoch. Shards stay mapped for the next one."""

    def close(self) -> None:
        """Drop the maps. The memory is freed with the last view."""
        self._maps.clear()
        if self._remote:
            self._remote.close()


def _map(path: Path) -> tuple[mmap.mmap, np.ndarray]:
    try:
        with open(path, "rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot map this shard ({error})") from None
    bus_error.explain(path, len(pages))
    return pages, np.frombuffer(pages, dtype=np.uint8)
