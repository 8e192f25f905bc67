"""The cache's laws, what is fetched of a window, and a store that fails: against counted calls and plain loops."""

import fcntl
import json
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import window_reader
from pipeline.augment import AugmentConfig
from pipeline.config import DataConfig
from pipeline.feed import Feed
from pipeline.loader import DaliLoader
from pipeline.reader import ShardReader, open_reader
from pipeline.storage import CachedShards, Fetcher
from pipeline.window_reader import WindowReader, pieces
from shards import cache as caches
from shards import remote
from shards.cache import Cache
from shards.format import ShardSet
from shards.remote import Store, is_url

CONFIG = DataConfig(block_size=4, window_blocks=2, order="block", image_size=32, val_image_size=32, val_resize_size=36)


def writes(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda stream: stream.write(data)


def refuses(stream: BinaryIO) -> None:
    raise AssertionError("made again")


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.root.iterdir() if not path.name.startswith(".")}


def used(cache: Cache) -> int:
    return sum(path.stat().st_size for path in cache.root.iterdir() if path.name != ".used")


# the cache


def test_a_file_is_made_once_and_holds_what_was_written(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    for make in (writes(b"abc"), refuses):
        descriptor = cache.open("a", 3, make)
        assert os.read(descriptor, 10) == b"abc"
        os.close(descriptor)
    assert os.close(Cache(tmp_path, 100).open("a", 3, refuses)) is None


def test_the_least_recently_used_goes_and_the_bound_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 350)
    seen = []
    for name in ("a", "b", "c", "a", "d", "e"):  # a is used again: b and c are older then
        time.sleep(0.01)
        os.close(cache.open(name, 100, writes(bytes(100))))
        seen.append(used(cache))
    assert names(cache) == {"a", "d", "e"}
    assert max(seen) <= 350


def test_a_file_in_use_stays_and_a_full_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "WAIT_S", 0.2)
    cache = Cache(tmp_path, 250)
    held = cache.open("a", 100, writes(bytes(100)))
    time.sleep(0.01)
    os.close(cache.open("b", 100, writes(bytes(100))))
    also = cache.open("c", 100, writes(bytes(100)))
    assert names(cache) == {"a", "c"}
    with pytest.raises(ValueError, match=r"no room for the 100 bytes of d: data\.cache_bytes is 250, 200 bytes"):
        cache.open("d", 100, writes(bytes(100)))
    threading.Timer(0.1, os.close, [held]).start()  # room comes while it waits
    os.close(cache.open("d", 100, writes(bytes(100))))
    assert names(cache) == {"c", "d"}
    os.close(also)


def test_a_file_larger_than_the_cache_is_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="no room for the 101 bytes"):
        Cache(tmp_path, 100).open("a", 101, refuses)
    assert time.monotonic() - start < 5


def test_makers_at_the_same_time_make_it_once(tmp_path: Path) -> None:
    made = []

    def make(stream: BinaryIO) -> None:
        made.append(1)
        time.sleep(0.1)
        stream.write(b"x" * 1000)

    def use() -> None:
        descriptor = Cache(tmp_path, 10_000).open("a", 1000, make)
        assert os.read(descriptor, 2000) == b"x" * 1000
        os.close(descriptor)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_who_waits_for_a_maker_does_not_wait_until_the_maker_lets_go(tmp_path: Path) -> None:
    def make(stream: BinaryIO) -> None:
        time.sleep(0.005)  # so that the other waits
        stream.write(b"abc")

    kept: list[int] = []

    def use() -> None:
        cache = Cache(tmp_path, 100)
        kept.extend(cache.open(f"{number}", 3, make) for number in range(30))

    threads = [threading.Thread(target=use, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(kept) == 90
    for descriptor in kept:
        os.close(descriptor)


def test_a_failed_or_short_file_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    for make, error in ((lambda stream: 1 / 0, ZeroDivisionError), (writes(b"ab"), ValueError)):
        with pytest.raises(error):
            cache.open("a", 3, make)
    assert {path.name for path in tmp_path.iterdir()} == {".used"}
    os.close(cache.open("a", 3, writes(b"abc")))


def test_what_a_killed_process_left_is_removed_but_not_what_is_being_made(tmp_path: Path) -> None:
    (tmp_path / ".dead.part").write_bytes(b"half")
    with open(tmp_path / ".alive.part", "wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        Cache(tmp_path, 100)
        assert {path.name for path in tmp_path.iterdir()} == {".alive.part"}
    (tmp_path / ".a.part").write_bytes(b"longer than the file will be")
    descriptor = Cache(tmp_path, 100).open("a", 3, writes(b"abc"))
    assert os.read(descriptor, 100) == b"abc"
    os.close(descriptor)


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    """As when it came between a look and the attempt to make it."""
    (tmp_path / "a").write_bytes(b"abc")
    caches.make_once(tmp_path / "a", 3, refuses)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"abc"}


def test_small_files_go_in_bulk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []
    scan = caches._scan
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(caches, "_scan", lambda root: scans.append(1) or scan(root))
    cache = Cache(tmp_path, 8_000)
    for i in range(200):
        os.close(cache.open(f"{i}", 100, writes(bytes(100))))
        assert used(cache) <= 8_000
    assert len(scans) < 40


def test_a_process_forked_while_a_file_is_made_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It has the maker's descriptors, and with them the locks that the maker does not give back itself."""
    cache, making, opened = Cache(tmp_path, 100), threading.Event(), threading.Event()

    def make(stream: BinaryIO) -> None:
        making.set()
        time.sleep(0.3)
        stream.write(b"abc")

    def use() -> None:
        os.close(cache.open("a", 3, make))
        opened.set()

    threading.Thread(target=use, daemon=True).start()
    making.wait()
    forked = os.fork()
    if not forked:
        time.sleep(60)
        os._exit(0)
    try:
        assert opened.wait(10)
        os.close(cache.open("b", 3, writes(b"abc")))
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


def test_what_can_never_fit_removes_nothing(tmp_path: Path) -> None:
    os.close(Cache(tmp_path, 100).open("a", 3, writes(b"abc")))
    with pytest.raises(ValueError, match="no room for the 101 bytes of b"):
        Cache(tmp_path, 100).open("b", 101, refuses)
    assert (tmp_path / "a").exists()


def test_the_bound_does_not_count_what_is_not_on_the_disk_yet(tmp_path: Path) -> None:
    before = Cache(tmp_path).max_bytes
    with open(tmp_path / ".b.part", "wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        alive.truncate(1 << 40)
        assert Cache(tmp_path).max_bytes < 1.1 * before


# what is fetched


def url_of(folder: Path) -> str:
    return f"file://{folder}"


@pytest.fixture
def remote_set(dataset_dir: Path, tmp_path: Path) -> ShardSet:
    return ShardSet.open(url_of(dataset_dir), tmp_path / "cache")


def test_a_url_is_opened_with_the_same_content(dataset: ShardSet, remote_set: ShardSet, dataset_dir: Path) -> None:
    assert remote_set.fingerprint == dataset.fingerprint
    assert remote_set.classes == dataset.classes
    for name, split in dataset.splits.items():
        assert np.array_equal(remote_set.split(name).samples, split.samples)
    assert remote_set.split("train").where(5) == dataset.split("train").where(5).replace("/", "file:///", 1)
    assert [is_url(path) for path in ("s3://b/x", "/data/x", "data:/x", dataset_dir)] == [True, False, False, False]


def feeds(split: Any, *, batch_size: int, world_size: int, local: int, **settings: Any) -> list[Feed]:
    rounds = settings.pop("rounds", 2)
    share = {"batch_size": batch_size, "global_batch_size": rounds * batch_size * world_size, "world_size": world_size}
    return [
        Feed(split=split, config=CONFIG, rank=rank, local_world_size=local, seed=3, **share, **settings)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(("repeats", "position"), [(1, 0), (1, 24), (2, 24)])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(("world_size", "local"), [(1, 1), (2, 2), (4, 2), (2, 1)])
def test_windows_are_what_this_machines_batches_need(
    dataset: ShardSet, repeats: int, position: int, rounds: int, world_size: int, local: int
) -> None:
    share = {"batch_size": 12 // world_size, "world_size": world_size, "local": local, "rounds": rounds}
    parts = feeds(dataset.split("train"), augment=AugmentConfig(repeats=repeats), **share)
    for rank, feed in enumerate(parts):
        windows = [set(window.tolist()) for window in feed.windows(1, position)]
        mates = [other for other in parts if other.rank // local == rank // local]
        spans = {mate.rank: list(mate.spans(position)) for mate in mates}
        needed = [id for mate in mates for id in mate.sample_ids(1, spans[mate.rank]).tolist()]
        assert set().union(*windows) == set(needed)
        assert sum(map(len, windows)) == len(set(needed))  # none in two windows
        order = feed.sample_ids(1, spans[rank]).tolist()
        where = [next(k for k, window in enumerate(windows) if id in window) for id in order]
        assert repeats > 1 or where == sorted(where)
    whole = feeds(dataset.split("val"), batch_size=5, world_size=2, local=1, augment=None)
    halves = [np.concatenate(list(feed.windows(0, 0))) for feed in whole]
    assert sorted(np.concatenate(halves).tolist()) == list(range(len(dataset.split("val"))))


def test_windows_after_a_bad_sample_go_on_where_the_batches_do(dataset: ShardSet) -> None:
    (feed,) = feeds(dataset.split("train"), batch_size=6, world_size=1, local=1, augment=AugmentConfig())
    ids = [i for batch in feed.batches(0, 12, 32, done=30) for i in batch.sample_ids.tolist()]
    assert sorted(np.concatenate(list(feed.windows(0, 12, done=30))).tolist()) == sorted(ids)


@pytest.mark.parametrize("piece_bytes", [1, 5_000, 40_000, 1 << 30])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_pieces_hold_the_samples_where_they_say(dataset: ShardSet, piece_bytes: int, share: float) -> None:
    split, rng = dataset.split("train"), np.random.default_rng(0)
    ids = rng.permutation(len(split))[: int(share * len(split))]
    rows = split.samples[ids]
    found, piece_of, at = pieces(rows, piece_bytes)
    for row, piece, place in zip(rows, piece_of.tolist(), at.tolist(), strict=True):
        data = b"".join(split.shard_path(s).read_bytes()[start:end] for s, start, end in found[piece].ranges)
        offset, size = int(row["offset"]), int(row["size"])
        wanted = split.shard_path(int(row["shard"])).read_bytes()[offset - 512 : offset + size]
        assert data[place - 512 : place + size] == wanted
    ranges = sorted(r for piece in found for r in piece.ranges)
    for (shard, _, end), (other, start, _) in pairwise(ranges):
        assert shard != other or end <= start  # no byte twice
    if share == 1.0 and piece_bytes > 1 << 20:
        assert len(ranges) == len(split.shards)  # neighbours are one request


def test_gaps_are_read_up_to_a_bound(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    split = dataset.split("train")
    rows = split.samples[::3]
    for gap, most in ((2048, 2048 * len(rows)), (1 << 30, None)):
        monkeypatch.setattr(window_reader, "GAP_BYTES", gap)
        (piece,) = pieces(rows, 1 << 30)[0]
        assert most is None or piece.size <= int(rows["size"].sum()) + 512 * len(rows) + most
        assert most is not None or len(piece.ranges) == len(split.shards)


def small(split: Any) -> int:
    """A cache that does not hold the dataset, but what is in use of it."""
    return split.dataset_bytes - 1


def reader_of(remote_set: ShardSet, tmp_path: Path, **settings: Any) -> tuple[Feed, ShardReader | WindowReader]:
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache"), fetch_bytes=20_000, **settings)
    share = {"batch_size": 3, "global_batch_size": 3}
    feed = Feed(split=remote_set.split("train"), config=config, augment=AugmentConfig(), **share)
    return feed, open_reader(feed)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("followed", [True, False])
def test_remote_views_are_the_files_bytes(
    dataset: ShardSet, remote_set: ShardSet, tmp_path: Path, fits: bool, followed: bool
) -> None:
    cache_bytes = 0 if fits else small(remote_set.split("train"))
    feed, reader = reader_of(remote_set, tmp_path, cache_bytes=cache_bytes)
    assert isinstance(reader, ShardReader if fits else WindowReader)
    oracle = ShardReader(dataset.split("train"))
    if followed:
        reader.follow(feed.windows(0, 0))
    for batch in feed.batches(0, 0, 32):
        reader.read_ahead(batch.sample_ids)
        views = reader.views(batch.sample_ids)
        assert [v.tobytes() for v in views] == [v.tobytes() for v in oracle.views(batch.sample_ids)]
        assert not any(view.flags.writeable for view in views)
    again = np.array([7, 3, 7])
    assert [v.tobytes() for v in reader.views(again)] == [v.tobytes() for v in oracle.views(again)]
    (view,) = reader.views(np.array([8]))
    reader.close()
    reader.close()
    assert view.tobytes() == oracle.views(np.array([8]))[0].tobytes()


def test_shards_can_be_held_in_memory_with_a_cache_for_one(
    dataset: ShardSet, remote_set: ShardSet, tmp_path: Path
) -> None:
    largest = max(info.bytes for info in remote_set.split("train").shards)
    _, reader = reader_of(remote_set, tmp_path, cache="encoded", cache_bytes=largest)
    ids = np.arange(len(dataset.split("train")))
    oracle = ShardReader(dataset.split("train")).views(ids)
    assert all(np.array_equal(*pair) for pair in zip(reader.views(ids), oracle, strict=True))
    reader.close()


def test_who_reads_and_who_plans_ask_for_a_shard_once(
    remote_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = remote_set.split("train")
    shards = CachedShards(split, Fetcher(split, replace(CONFIG, cache_dir=str(tmp_path))))
    asked: list[str] = []
    fetch = shards._fetcher.fetch

    def slow_fetch(name: str, *arguments: Any) -> Any:
        asked.append(name)
        time.sleep(0.05)
        return fetch(name, *arguments)

    monkeypatch.setattr(shards._fetcher, "fetch", slow_fetch)
    threads = [threading.Thread(target=shards.map, args=(0,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(asked) == 1
    shards.close()


def test_an_order_that_the_cache_cannot_serve_is_refused(remote_set: ShardSet, tmp_path: Path) -> None:
    size = small(remote_set.split("train"))
    with pytest.raises(ValueError, match=rf'data\.order = "global" reads all shards at once, {size + 1} bytes'):
        reader_of(remote_set, tmp_path, order="global", cache_bytes=size)
    with pytest.raises(ValueError, match=r"data\.cache_bytes is 30000, and what is in use of split 'train' takes"):
        reader_of(remote_set, tmp_path, cache_bytes=30_000)


def test_what_is_held_is_bounded_by_the_open_files_too(remote_set: ShardSet, tmp_path: Path) -> None:
    feed, reader = reader_of(remote_set, tmp_path, cache_bytes=small(remote_set.split("train")))
    assert isinstance(reader, WindowReader)
    assert reader._fetcher.max_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    reader._fetcher.cache.max_bytes = 1 << 40
    for limit, expected in ((1, 3), (1 << 20, 12)):
        reader._fetcher.max_files = limit
        reader.follow(feed.windows(0, 0))
        time.sleep(0.5)  # the plan goes as far as it may
        assert len(reader._windows) == expected
    reader.end_epoch()
    assert not reader._windows
    reader.close()


def test_validation_has_room_when_training_rests(remote_set: ShardSet, tmp_path: Path) -> None:
    """Training counts its steps, and does not ask for the batch after the last: it must let go of its windows."""
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache"), fetch_bytes=20_000, cache_bytes=1, window_blocks=1)
    share = {"batch_size": 3, "global_batch_size": 3}
    parts = {"train": AugmentConfig(), "val": None}

    def loaders(cache_bytes: int) -> list[DaliLoader]:
        feeds = [
            Feed(
                split=remote_set.split(name), config=replace(config, cache_bytes=cache_bytes), augment=augment, **share
            )
            for name, augment in parts.items()
        ]
        return [DaliLoader(feed, device=torch.device("cpu"), threads=1) for feed in feeds]

    needs = []
    for split, augment in parts.items():
        with pytest.raises(ValueError, match="takes up to") as error:
            open_reader(Feed(split=remote_set.split(split), config=config, augment=augment, **share))
        needs.append(int(str(error.value).partition("takes up to ")[2].partition(";")[0]))
    train, val = loaders(max(needs))
    steps = train.iter_epoch(0)
    assert sum(len(next(steps).sample_ids) for _ in range(len(train))) == len(remote_set.split("train"))
    assert isinstance(train._reader, WindowReader)
    assert not train._reader._windows
    assert sum(len(batch.sample_ids) for batch in val.iter_epoch(0)) == len(remote_set.split("val"))
    train.close(), val.close()


def test_a_hash_that_is_a_path_is_refused(dataset_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset_dir, tmp_path / "set"))
    info = json.loads((copy / "dataset.json").read_text())
    info["splits"]["train"]["shards"][0]["sha256"] = str(tmp_path / "x")
    (copy / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"/x' is no sha256 of train-000000\.tar"):
        ShardSet.open(url_of(copy), tmp_path / "cache")


# a store that fails


class Flaky(MemoryFileSystem):
    """fsspec's memory, failing the first `failures` reads; its own contents."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failures = 0
    reads: list[tuple[Any, Any]] = []  # noqa: RUF012
    error: Exception = OSError("injected")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("flaky://")))

    most: int | None = None  # bytes that come in time

    def put_file(self, path: str, to: str, **options: Any) -> None:
        time.sleep(0.6)
        if len(Flaky.reads) < Flaky.failures:
            Flaky.reads.append((None, None))
            raise Flaky.error
        self.pipe_file(to, Path(path).read_bytes())

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        Flaky.reads.append((start, end))
        if Flaky.most and end is not None and start is not None and end - start > Flaky.most:
            raise TimeoutError
        if len(Flaky.reads) <= Flaky.failures:
            raise Flaky.error
        return bytes(MemoryFileSystem.cat_file(self, path, start=start, end=end))


@pytest.fixture
def flaky() -> Iterator[Store]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store, Flaky.reads, Flaky.failures, Flaky.error = {}, [], 0, OSError("injected")
    Flaky.most = None
    fsspec.filesystem("flaky").pipe_file("/set/a", b"0123456789")
    yield Store("flaky://set/", timeout_s=0.5)
    Flaky.store = {}


def test_reads_are_repeated_with_growing_pauses(flaky: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    Flaky.failures = 4
    flaky.timeout_s = 60
    assert flaky.read("a", 2, 5) == b"234"
    assert len(Flaky.reads) == 5
    assert all(0.5 * 0.1 * 2**k <= pause <= 0.1 * 2**k for k, pause in enumerate(pauses))
    assert len(set(pauses)) == 4


def test_a_dead_store_is_one_line_in_bounded_time(flaky: Store) -> None:
    Flaky.failures = 10**9
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"flaky://set/a: the store has failed for 0\.5 s.*injected") as error:
        flaky.read("a")
    assert time.monotonic() - start < 3
    assert "\n" not in str(error.value)
    assert len(Flaky.reads) > 2


@pytest.mark.parametrize("error", [PermissionError("denied"), FileNotFoundError("a")])
def test_what_no_retry_mends_is_said_at_once(flaky: Store, error: Exception) -> None:
    Flaky.failures, Flaky.error = 1, error
    with pytest.raises(ValueError, match=r"no permission|no such file or bucket"):
        flaky.read("a")
    assert len(Flaky.reads) == 1


def test_a_short_answer_counts_as_a_failure(flaky: Store) -> None:
    with pytest.raises(ValueError, match="10 bytes came instead of 20"):
        flaky.read("a", 0, 20)


def test_on_a_slow_line_less_is_asked_for_at_a_time(flaky: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(remote, "SMALL_PART_BYTES", 1)
    Flaky.most = 3
    assert flaky.read("a", 0, 10) == b"0123456789"
    assert Flaky.reads[:4] == [(0, 10), (0, 5), (0, 2), (2, 6)]  # and more again where it came fast
    assert len(Flaky.reads) < 16


def test_an_upload_that_fails_late_is_made_again(flaky: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "UPLOAD_BYTES_PER_S", 10)
    Flaky.failures = 1
    (tmp_path / "b").write_bytes(b"x" * 100)  # so that it may take ten seconds
    flaky.upload(tmp_path / "b", "b")
    assert flaky.read("b") == b"x" * 100


def test_a_download_is_checked_and_made_in_parts(flaky: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 4)
    sha256 = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"  # of 0123456789, by sha256sum
    with open(tmp_path / "a", "w+b") as stream:
        flaky.download("a", 10, sha256, stream)
        assert (tmp_path / "a").stat().st_size <= 10
        stream.seek(0)
        assert stream.read() == b"0123456789"
        assert Flaky.reads == [(0, 4), (4, 8), (8, 10)]
        Flaky.reads.clear()
        with pytest.raises(ValueError, match=r"flaky://set/a: 3 downloads have another sha256 than dataset\.json"):
            flaky.download("a", 10, sha256[::-1], stream)
        assert len(Flaky.reads) == 9


def test_kinds_of_urls_that_nothing_reads() -> None:
    with pytest.raises(ValueError, match=r"foo://x: cannot be opened"):
        Store("foo://x")


def test_settings_are_checked() -> None:
    for wrong in ({"cache_bytes": -1}, {"fetch_bytes": 0}, {"fetch_threads": 0}, {"store_timeout_s": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DataConfig(**wrong)  # type: ignore[arg-type]
