"""The cache makes a file once, keeps its size bound, and keeps files in use; checked with counted calls."""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from penstock.shards import cache as caches
from penstock.shards.cache import Cache


def writes(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda stream: stream.write(data)


def refuses(stream: BinaryIO) -> None:
    raise AssertionError("made again")


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.root.iterdir() if not path.name.startswith(".")}


def used(cache: Cache) -> int:
    return sum(path.stat().st_size for path in cache.root.iterdir() if path.name != ".used")


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
    with pytest.raises(ValueError, match=r"no room for the 100 bytes of d: data\.cache_bytes is 250 and 200 bytes"):
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
