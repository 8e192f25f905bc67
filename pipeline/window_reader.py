"""Read samples of shards at a URL with a cache that cannot hold all of them: fetch each window of the order in parts.

In `block` order, the samples of a window that this machine's ranks need are in long runs of the shards. The reader
fetches them as byte ranges, a few megabytes into each cached file, at least one window ahead of the one in use. So it
fetches no byte twice in an epoch, and no samples of other machines, except gaps of up to `GAP_BYTES`.

A range has no sha256 in dataset.json. Its length is checked, and the tar header before each sample: it must be intact
and have the sample's size.
"""

import hashlib
import tarfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np

from penstock.pipeline.feed import Feed
from penstock.pipeline.storage import Fetcher, Mapped
from penstock.shards.format import Split

HEADER_BYTES = 512  # of a tar member
GAP_BYTES = 64 << 10  # a gap between two samples up to which one request reads both
HELD = 3  # windows: the current one, the one before (repeated augmentation returns to it), and the next
LAST = 2  # windows that the last batches of the other loader (training or validation) may still use
BATCHES = 6  # that each loader holds besides its prefetched ones
READS = 3  # attempts to read a range that differs from the packed one


@dataclass(frozen=True)
class Piece:
    """One cached file: ranges of shards, one after the other."""

    ranges: tuple[tuple[int, int, int], ...]  # shard, start, end
    at: np.ndarray  # (n,) int64, starts of the samples in the file
    sizes: np.ndarray  # (n,) their bytes

    @property
    def size(self) -> int:
        return sum(end - start for _, start, end in self.ranges)

    def name(self, split: Split) -> str:
        text = " ".join(f"{split.shards[shard].sha256} {start} {end}" for shard, start, end in self.ranges)
        return f"{hashlib.sha256(text.encode()).hexdigest()}.ranges"


@dataclass(frozen=True)
class Window:
    """Samples that are fetched together: ids (n,) sorted; the piece of each and its place in the piece, (n,) both."""

    sample_ids: np.ndarray
    piece_of: np.ndarray
    at: np.ndarray
    maps: list[Future[Mapped]]
    size_bytes: int


def pieces(rows: np.ndarray, piece_bytes: int) -> tuple[list[Piece], np.ndarray, np.ndarray]:
    """Divide sample table rows (n,), n > 0, into pieces of about `piece_bytes`. Also return each row's piece and its
    place in the piece, (n,) both."""
    order = np.lexsort((rows["offset"], rows["shard"]))
    shard, size = rows["shard"][order].astype(np.int64), rows["size"][order].astype(np.int64)
    offset = rows["offset"][order].astype(np.int64)
    begin, end = offset - HEADER_BYTES, offset + size
    piece = (np.cumsum(end - begin) - 1) // piece_bytes
    piece = np.unique(piece, return_inverse=True)[1]  # an image may be larger than a piece
    new = np.ones(len(rows), bool)
    new[1:] = (shard[1:] != shard[:-1]) | (piece[1:] != piece[:-1]) | (begin[1:] > end[:-1] + GAP_BYTES)
    first = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    starts, ends = begin[first], end[np.append(first[1:], len(rows)) - 1]
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    before -= before[np.searchsorted(piece[first], piece[first])]  # counted from the piece's first run
    at = before[run] + offset - starts[run]
    found = []
    for number in range(int(piece[-1]) + 1):
        runs, mine = piece[first] == number, piece == number
        ranges = zip(shard[first][runs].tolist(), starts[runs].tolist(), ends[runs].tolist(), strict=True)
        found.append(Piece(tuple(ranges), at[mine], size[mine]))
    back = np.argsort(order)
    return found, piece[back], at[back]


class WindowReader:
    """The encoded bytes of one split's samples, like `ShardReader`. Samples that `follow` did not announce are fetched
    on request.

    Raises:
        ValueError: the cache is too small for a few windows.
    """

    def __init__(self, feed: Feed, fetcher: Fetcher) -> None:
        self.split, self._piece_bytes, self._fetcher = feed.split, feed.config.fetch_bytes, fetcher
        self._changed = threading.Condition()  # guards what follows
        self._windows: deque[Window] = deque()
        self._turn = object()  # identifies the current plan
        self._next_bytes: int | None = None  # of the window that waits for room; None if all are planned
        self._ranks = feed.local_world_size or feed.world_size
        in_use = (HELD + 1 + LAST) * feed.window_size + 2 * (feed.config.prefetch + BATCHES) * feed.batch_size
        share = min(1, self._ranks * in_use / len(self.split))
        need = int(share * sum(info.bytes for info in self.split.shards))
        if need > fetcher.cache.max_bytes:
            raise ValueError(
                f"{self.split.url}: data.cache_bytes is {fetcher.cache.max_bytes}, but the windows in use of split "
                f"{self.split.name!r} need up to {need}; raise it, or lower data.window_blocks"
            )

    def follow(self, windows: Iterator[np.ndarray]) -> None:
        """Fetch these samples, (n,) ids for each window, ahead of use. The limit is half of this rank's share of the
        cache, since files in use are not removed and other ranks may be at other windows."""
        self._fetcher.forget()
        with self._changed:
            turn = self._turn = object()
            self._windows.clear()
            self._next_bytes = 0
        threading.Thread(target=self._plan, args=(windows, turn), daemon=True).start()

    def _plan(self, windows: Iterator[np.ndarray], turn: object) -> None:
        try:
            for sample_ids in windows:
                if not len(sample_ids):  # this machine needs none of the last few samples
                    continue
                size_bytes = int(self.split.samples["size"][sample_ids].sum(dtype=np.int64))
                with self._changed:
                    self._next_bytes = size_bytes
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._turn is not turn or self._has_room())
                    if self._turn is not turn:
                        return
                    self._windows.append(self._open(np.sort(sample_ids)))
                    self._next_bytes = 0
                    self._changed.notify_all()
        finally:
            with self._changed:
                if self._turn is turn:
                    self._next_bytes = None
                    self._changed.notify_all()

    def _has_room(self) -> bool:
        held_bytes = sum(window.size_bytes for window in self._windows) + (self._next_bytes or 0)
        held_files = sum(len(window.maps) for window in self._windows)
        return len(self._windows) < HELD or (
            held_bytes <= self._fetcher.cache.max_bytes // (2 * self._ranks) and held_files < self._fetcher.max_files
        )

    def _open(self, sample_ids: np.ndarray, first: bool = False) -> Window:
        rows = self.split.rows(sample_ids)
        found, piece_of, at = pieces(rows, self._piece_bytes)
        maps = [
            self._fetcher.fetch(piece.name(self.split), piece.size, partial(self._write, piece), first)
            for piece in found
        ]
        return Window(sample_ids, piece_of, at, maps, sum(piece.size for piece in found))

    def _write(self, piece: Piece, stream: BinaryIO) -> None:
        bad = 0
        for _ in range(READS):
            data = bytearray()
            for shard, start, end in piece.ranges:
                data += self._fetcher.store.read(self.split.shards[shard].file, start, end)
            places = zip(piece.at.tolist(), piece.sizes.tolist(), strict=True)
            bad = next((at for at, size in places if not _is_member(data, at, size)), -1)
            if bad < 0:
                stream.write(data)
                return
        for shard, start, end in piece.ranges:
            if bad < end - start:
                raise ValueError(
                    f"{self.split.url}/{self.split.shards[shard].file}: has no image at byte {start + bad}, although "
                    "the sample table has one there; upload the shard again"
                )
            bad -= end - start

    def views(self, sample_ids: np.ndarray) -> list[np.ndarray]:
        """(n,) sample ids → n read-only (size,) uint8 views on cached files."""
        with self._changed:
            self._drop_before(sample_ids)
            self._changed.wait_for(lambda: not self._is_coming() or not len(self._unknown(sample_ids)))
            windows, unknown = [*self._windows], self._unknown(sample_ids)
        if len(unknown):
            windows.append(self._open(np.unique(unknown), first=True))
        sizes = self.split.samples["size"][sample_ids].tolist()
        views: list[np.ndarray | None] = [None for _ in sizes]
        for window in windows:
            places, hits = _find(window, sample_ids)
            for i, piece, at in zip(
                np.flatnonzero(hits).tolist(),
                window.piece_of[places[hits]].tolist(),
                window.at[places[hits]].tolist(),
                strict=True,
            ):
                views[i] = window.maps[piece].result().data[at : at + sizes[i]]
        return [view for view in views if view is not None]

    def _drop_before(self, sample_ids: np.ndarray) -> None:
        """Release windows that are more than one before the first window with these samples."""
        for number, window in enumerate(self._windows):
            if _find(window, sample_ids)[1].any():
                for _ in range(number - 1):
                    self._windows.popleft()
                self._changed.notify_all()
                return

    def _unknown(self, sample_ids: np.ndarray) -> np.ndarray:
        for window in self._windows:
            sample_ids = sample_ids[~_find(window, sample_ids)[1]]
        return sample_ids

    def _is_coming(self) -> bool:
        """Whether the plan continues without releasing more windows."""
        return self._next_bytes is not None and self._has_room()

    def read_ahead(self, sample_ids: np.ndarray, gap_bytes: int = 0) -> None:
        """Do nothing: downloaded files are in memory already."""

    def end_epoch(self) -> None:
        """End an epoch and release all windows, so that validation, or another run, has room."""
        self._fetcher.forget()
        with self._changed:
            self._turn, self._next_bytes = object(), None
            self._windows.clear()
            self._changed.notify_all()

    def close(self) -> None:
        self.end_epoch()
        self._fetcher.close()


def _find(window: Window, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of samples in a window, and whether they are in it: (n,) both."""
    places = np.minimum(np.searchsorted(window.sample_ids, sample_ids), len(window.sample_ids) - 1)
    return places, window.sample_ids[places] == sample_ids


def _is_member(data: bytearray, at: int, size: int) -> bool:
    """Whether the tar header before `at` is intact and has this `size`."""
    try:
        return tarfile.TarInfo.frombuf(bytes(data[at - HEADER_BYTES : at]), "utf-8", "surrogateescape").size == size
    except tarfile.HeaderError:
        return False
