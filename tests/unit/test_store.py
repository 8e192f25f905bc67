"""A store that fails: the retried requests, the time limit, and the messages."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from penstock.pipeline.config import DataConfig
from penstock.shards import remote
from penstock.shards.remote import Store


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
    with pytest.raises(ValueError, match=r"no permission|file or bucket does not exist"):
        flaky.read("a")
    assert len(Flaky.reads) == 1


def test_a_short_answer_counts_as_a_failure(flaky: Store) -> None:
    with pytest.raises(ValueError, match="received 10 bytes instead of 20"):
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
        with pytest.raises(ValueError, match=r"flaky://set/a: 3 downloads did not match the sha256 in dataset\.json"):
            flaky.download("a", 10, sha256[::-1], stream)
        assert len(Flaky.reads) == 9


def test_kinds_of_urls_that_nothing_reads() -> None:
    with pytest.raises(ValueError, match=r"foo://x: cannot be opened"):
        Store("foo://x")


def test_settings_are_checked() -> None:
    for wrong in ({"cache_bytes": -1}, {"fetch_bytes": 0}, {"fetch_threads": 0}, {"store_timeout_s": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DataConfig(**wrong)  # type: ignore[arg-type]
