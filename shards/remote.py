"""Files of an object store by URL (s3://, gs://, hf://, https:// …), through fsspec, with retries and time-outs.

Input: a URL under which a packed dataset lies or shall lie. Output: bytes, or one line that says what is wrong. Other
modules do not import fsspec, and this one does only when a URL is opened.
"""

import asyncio
import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

from penstock.shards.cache import cache_root, make_once
from penstock.shards.store_errors import final, of_the_hub, one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")
TIMEOUT_S = 60.0
PART_BYTES = 8 << 20  # asked for in one request, at most;
SMALL_PART_BYTES = 64 << 10  # and where requests of more take too long
CONNECTIONS = 256  # at a time, at most; botocore's own bound is 10
LISTING_S = 600.0  # for the names of all files, which come in pages of 1,000
DOWNLOADS = 3  # of a file whose bytes are not those that were packed
UPLOAD_BYTES_PER_S = 1 << 20  # slower than this is taken for dead
FIRST_DELAY_S, LAST_DELAY_S = 0.1, 5.0
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface-hub"}  # others' errors name theirs
LOGS = ("gcsfs", "huggingface_hub.utils._http")  # they write tracebacks and warnings of what is told in a line
DEFECTS = (TypeError, AttributeError, NameError, LookupError, ImportError, NotImplementedError)


_counting, _received = threading.Lock(), 0


def received_bytes() -> int:
    """What this process has had of any store so far: who waits for it and sees it grow does not hang."""
    return _received


def is_url(path: str | os.PathLike[str]) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)) is not None


class _Opened(NamedTuple):
    """fsspec's file system, which does not survive a fork of its process, and the URL's path in it."""

    process: int
    filesystem: "AbstractFileSystem"
    path: str


class Unmendable(ValueError):
    """An answer that comes again however often it is asked for."""


class Store:
    """The files directly under one URL.

    A request that fails is made again, after a pause that doubles and is drawn at random, until `timeout_s` seconds
    have passed since it was first made; one that hangs is given up after a third of that. A part of a file that has not
    come by then may be too large for a slow line with many downloads: the next requests are for half as much.

    Raises:
        ValueError: the URL's kind is unknown, its package is missing, or it has a query; and from every method: the
            file, bucket or permission is missing, or the store fails for `timeout_s`.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S, *, attempts: int = 1) -> None:
        """`attempts`: that the store's own client may make of each request, of which an upload has many."""
        self.url, self.timeout_s, self._attempts = url.rstrip("/"), timeout_s, attempts
        if url.startswith(("http://", "https://")) and ("?" in url or "#" in url):
            raise ValueError(f"{url}: a dataset's files lie under its URL, so it cannot have a query; leave it out")
        if url.startswith("hf://") and not re.match("hf://(datasets|spaces|models|buckets)/[^/]+/[^/]", url):
            raise ValueError(f"{url}: is no path on the Hub; write hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
        self._opened: _Opened | None = None
        self._part_bytes = PART_BYTES
        self._open()

    def _open(self) -> "_Opened":
        if self._opened is None or self._opened.process != os.getpid():
            from fsspec.config import conf
            from fsspec.core import url_to_fs

            options: dict[str, object] = {"use_listings_cache": False}  # another process may write there
            if self.url.startswith(("s3://", "s3a://")):
                config = conf.get("s3", {}).get("config_kwargs", {})
                ours = {"retries": {"total_max_attempts": self._attempts}, "max_pool_connections": CONNECTIONS}
                options["config_kwargs"] = ours | config | {"retries": ours["retries"]}
            elif self.url.startswith(("file://", "local://")):
                options["auto_mkdir"] = True
            elif self.url.startswith("hf://"):
                options["skip_instance_cache"] = True  # with it, what was listed is known as long as the process lives
            try:
                filesystem, path = url_to_fs(self.url, **options)
            except ImportError as error:
                package = PACKAGES.get(self.url.partition(":")[0], "that package")
                raise ValueError(f"{self.url}: {one_line(error)}; pip install {package}") from None
            except (ValueError, OSError) as error:
                raise ValueError(f"{self.url}: cannot be opened ({one_line(error)})") from None
            if hasattr(filesystem, "retries"):  # s3fs's own, which no deadline ends
                filesystem.retries = self._attempts
            for name in LOGS:
                if not (log := logging.getLogger(name)).level:
                    log.setLevel(logging.CRITICAL)
            self._opened = _Opened(os.getpid(), filesystem, path.rstrip("/"))
        return self._opened

    def read(self, file: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes start…end-1 of a file, or all."""
        if start is None or end is None:
            return self._retry(file, lambda: self._counted(self._call("cat_file", self._path(file))))
        parts = bytearray()
        while start + len(parts) < end:
            parts += self._retry(file, partial(self._part, file, start + len(parts), end))
        return bytes(parts)

    def _part(self, file: str, start: int, end: int) -> bytes:
        """The first of the bytes start…end-1, as many as come in time."""
        asked, began = self._part_bytes, time.monotonic()
        end = min(end, start + asked)
        try:
            data = self._counted(self._call("cat_file", self._path(file), start=start, end=end, **self._exactly))
        except TimeoutError:
            if asked == self._part_bytes:  # and no other thread has seen this before
                self._part_bytes = max(min(end - start, asked) // 2, SMALL_PART_BYTES)
            raise
        if len(data) > end - start:
            raise Unmendable(f"{self.url}/{file}: the server sends a file where a part is asked for (no HTTP ranges)")
        if len(data) < end - start:
            raise OSError(f"{len(data)} bytes came instead of {end - start}")
        if time.monotonic() - began < self.timeout_s / 30:
            self._part_bytes = min(max(2 * asked, self._part_bytes), PART_BYTES)
        return data

    @property
    def _exactly(self) -> dict[str, Any]:
        """What keeps the Hub's file system from reading 5 MB beyond each part."""
        return {"cache_type": "none"} if self.url.startswith("hf://") else {}

    def _counted(self, data: bytes) -> bytes:
        global _received
        with _counting:
            _received += len(data)
        return data

    def size(self, file: str) -> int:
        size = self._retry(file, lambda: self._call("info", self._path(file))).get("size")
        if size is None:
            raise ValueError(f"{self.url}/{file}: the server does not say how long it is (no Content-Length)")
        return int(size)

    def download(self, file: str, size: int, sha256: str, stream: BinaryIO) -> None:
        """Write a file to `stream`, from its beginning. Raises ValueError if it has not this hash, three times."""
        for _ in range(DOWNLOADS):
            stream.seek(0)
            if self.copy(file, size, stream) == sha256:
                return
        raise ValueError(
            f"{self.url}/{file}: {DOWNLOADS} downloads have another sha256 than dataset.json says; upload it again"
        )

    def copy(self, file: str, size: int, stream: BinaryIO) -> str:
        """Write a file of `size` bytes to `stream`, whatever it holds; returns its sha256."""
        digest = hashlib.sha256()
        for start in range(0, size, PART_BYTES):
            data = self.read(file, start, min(start + PART_BYTES, size))
            digest.update(data)
            stream.write(data)
        return digest.hexdigest()

    def upload(self, path: Path, file: str) -> None:
        """Store a local file, which appears whole or not at all where the store can do that (all object stores do)."""
        timeout_s = self.timeout_s + path.stat().st_size / UPLOAD_BYTES_PER_S
        self._retry(
            file, lambda: self._call("put_file", str(path), self._path(file), timeout_s=timeout_s), timeout_s=timeout_s
        )

    def files(self) -> dict[str, int]:
        """Names of what lies under the URL, and their bytes; none where nothing does."""

        def names() -> dict[str, int]:
            path = self._open().path
            try:
                found = self._call("ls", path, detail=True)
            except FileNotFoundError as error:
                if of_the_hub(error):
                    raise
                return {}
            sizes = {entry["name"].rstrip("/"): int(entry["size"] or 0) for entry in found}
            return {name.rpartition("/")[2]: size for name, size in sizes.items() if name != path}

        return self._retry("", names)

    def tree(self) -> dict[str, int]:
        """All files below the URL by their paths from there, with "/", and their bytes; none where nothing is."""

        def names() -> dict[str, int]:
            path = self._open().path
            try:
                found = self._call("find", path, detail=True, timeout_s=LISTING_S)
            except FileNotFoundError as error:
                if of_the_hub(error):
                    raise
                return {}
            below = ((name.removeprefix(f"{path}/"), entry) for name, entry in found.items() if name != path)
            return {name: int(entry["size"] or 0) for name, entry in sorted(below)}

        return self._retry("", names)

    def _path(self, file: str) -> str:
        return f"{self._open().path}/{file}"

    def _call(self, method: str, *arguments: str, timeout_s: float = 0.0, **options: int) -> Any:
        """One request. Most of fsspec's file systems are asynchronous and can be told to stop waiting."""
        from fsspec.asyn import sync

        filesystem = self._open().filesystem
        if not filesystem.async_impl:
            return getattr(filesystem, method)(*arguments, **options)

        async def bounded() -> object:
            request = getattr(filesystem, f"_{method}")(*arguments, **options)
            return await asyncio.wait_for(request, timeout_s or self.timeout_s / 3)

        return sync(filesystem.loop, bounded)

    def _retry(self, file: str, request: Callable[[], T], timeout_s: float = 0.0) -> T:
        where = f"{self.url}/{file}" if file else self.url
        timeout_s = timeout_s or self.timeout_s
        deadline = time.monotonic() + timeout_s
        for attempt in count():
            try:
                return request()
            except NotImplementedError:
                raise ValueError(f"{where}: this kind of URL can only be read") from None
            except (Unmendable, *DEFECTS):
                raise
            except Exception as error:
                if why := final(error):
                    raise ValueError(f"{where}: {why}") from None
                pause_s = random.uniform(0.5, 1) * min(FIRST_DELAY_S * 2**attempt, LAST_DELAY_S)
                if time.monotonic() + pause_s > deadline:
                    raise ValueError(
                        f"{where}: the store has failed for {timeout_s:g} s and {attempt + 1} requests, the last "
                        f"with {one_line(error.__cause__ or error)}; see that it is up and can be reached"
                    ) from None
                time.sleep(pause_s)
        raise AssertionError


def mirror(store: Store, info_file: str, cache_dir: str | os.PathLike[str] = "") -> Path:
    """The directory in the cache that holds a remote dataset's description and the files that it lists with a sha256,
    downloaded where they are not there yet. One dataset has one directory, whoever packs another to the same URL."""
    raw = store.read(info_file)
    try:
        files = {str(name): str(digest) for name, digest in json.loads(raw)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        files = {}  # the reader of the description says what is wrong with it
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", store.url)[-100:]
    root = cache_root(cache_dir) / "datasets" / f"{name}-{hashlib.sha256(raw).hexdigest()[:16]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{root}: cannot be made ({error.strerror}); set data.cache_dir") from None
    for file, digest in files.items():
        if file != os.path.basename(file) or file.startswith("."):
            raise ValueError(f"{store.url}/{info_file}: {file!r} is not a plain file name; pack the dataset again")
        while not (root / file).exists():
            size = store.size(file)
            make_once(root / file, size, partial(store.download, file, size, digest))
    while not (root / info_file).exists():
        make_once(root / info_file, len(raw), lambda stream: stream.write(raw))
    return root
