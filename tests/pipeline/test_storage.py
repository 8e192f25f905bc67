"""The bytes fetched and read for a window, compared with plain loops; a cache shared with a forked process."""

import json
import os
import resource
import shutil
import signal
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from penstock.pipeline import window_reader
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.reader import ShardReader, open_reader
from penstock.pipeline.storage import CachedShards, Fetcher
from penstock.pipeline.window_reader import WindowReader, pieces
from penstock.shards.cache import Cache
from penstock.shards.format import ShardSet
from penstock.shards.remote import is_url

CONFIG = DataConfig(block_size=4, window_blocks=2, order="block", image_size=32, val_image_size=32, val_resize_size=36)


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
        os.close(cache.open("b", 3, lambda stream: stream.write(b"abc")))
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


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
    """A cache that is too small for the dataset, but large enough for the windows in use."""
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
    with pytest.raises(ValueError, match=r"data\.cache_bytes is 30000, but the windows in use of split 'train' need"):
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
        with pytest.raises(ValueError, match="need up to") as error:
            open_reader(Feed(split=remote_set.split(split), config=config, augment=augment, **share))
        needs.append(int(str(error.value).partition("need up to ")[2].partition(";")[0]))
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
    with pytest.raises(ValueError, match=r"/x' is not a valid sha256 for train-000000\.tar"):
        ShardSet.open(url_of(copy), tmp_path / "cache")
