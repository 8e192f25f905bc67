"""Files of an object store by URL (s3://, gs://, hf://, https:// …), through fsspec, with retries and time-outs.

Input: the URL of a packed dataset that exists or will be written. Output: bytes, or a one-line error. Only this module
imports fsspec, and only when a URL is opened.
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
PART_BYTES = 8 << 20  # maximum size of one request
SMALL_PART_BYTES = 64 << 10  # lower limit of the request size when larger requests take too long
CONNECTIONS = 256  # maximum number of simultaneous connections; botocore's default is 10
LISTING_S = 600.0  # time limit for listing all files, which come in pages of 1,000
DOWNLOADS = 3  # attempts for a file whose hash does not match
UPLOAD_BYTES_PER_S = 1 << 20  # an upload slower than this counts as hung
FIRST_DELAY_S, LAST_DELAY_S = 0.1, 5.0
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface-hub"}  # errors of other file systems name their package
LOGS = ("gcsfs", "huggingface_hub.utils._http")  # they log tracebacks and warnings for errors that we print as one line
DEFECTS = (TypeError, AttributeError, NameError, LookupError, ImportError, NotImplementedError)


_counting, _received = threading.Lock(), 0


def received_bytes() -> int:
    """The bytes that this process has received from all stores so far. While the number grows, the process is not
    hanging."""
    return _received


def is_url(path: str | os.PathLike[str]) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)) is not None


class _Opened(NamedTuple):
    """An fsspec file system and the URL's path in it. The file system does not survive a fork of its process."""

    process: int
    filesystem: "AbstractFileSystem"
    path: str


class Unmendable(ValueError):
    """An error that no retry can fix."""


class Store:
    """The files directly under one URL.

    A failed request is retried after a random pause that doubles each time, until `timeout_s` seconds have passed since
    the first attempt. A request that hangs is abandoned after a third of that time. The requested part of the file may
    then be too large for a slow connection with many downloads, so the next requests are half as large.

    Raises:
        ValueError: the kind of URL is not supported, its package is missing, or it has a query. From every method: the
            file, bucket or permission is missing, or the store fails for `timeout_s`.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S, *, attempts: int = 1) -> None:
        """`attempts`: how often the store's own client may try each request; one upload consists of many requests."""
        self.url, self.timeout_s, self._attempts = url.rstrip("/"), timeout_s, attempts
        if url.startswith(("http://", "https://")) and ("?" in url or "#" in url):
            raise ValueError(f"{url}: the URL of a dataset cannot have a query or a fragment; remove it")
        if url.startswith("hf://") and not re.match("hf://(datasets|spaces|models|buckets)/[^/]+/[^/]", url):
            raise ValueError(f"{url}: not a path on the Hub; write hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
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
                options["skip_instance_cache"] = True  # that cache would keep old listings as long as the process lives
            try:
                filesystem, path = url_to_fs(self.url, **options)
            except ImportError as error:
                package = PACKAGES.get(self.url.partition(":")[0], "that package")
                raise ValueError(f"{self.url}: {one_line(error)}; pip install {package}") from None
            except (ValueError, OSError) as error:
                raise ValueError(f"{self.url}: cannot be opened ({one_line(error)}); check the URL") from None
            if hasattr(filesystem, "retries"):  # s3fs's own retries ignore our deadline
                filesystem.retries = self._attempts
            for name in LOGS:
                if not (log := logging.getLogger(name)).level:
                    log.setLevel(logging.CRITICAL)
            self._opened = _Opened(os.getpid(), filesystem, path.rstrip("/"))
        return self._opened

    def read(self, file: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read the bytes start…end-1 of a file, or all of it."""
        if start is None or end is None:
            return self._retry(file, lambda: self._counted(self._call("cat_file", self._path(file))))
        parts = bytearray()
        while start + len(parts) < end:
            parts += self._retry(file, partial(self._part, file, start + len(parts), end))
        return bytes(parts)

    def _part(self, file: str, start: int, end: int) -> bytes:
        """Read the first of the bytes start…end-1, as many as one request returns."""
        asked, began = self._part_bytes, time.monotonic()
        end = min(end, start + asked)
        try:
            data = self._counted(self._call("cat_file", self._path(file), start=start, end=end, **self._exactly))
        except TimeoutError:
            if asked == self._part_bytes:  # no other thread has reduced it yet
                self._part_bytes = max(min(end - start, asked) // 2, SMALL_PART_BYTES)
            raise
        if len(data) > end - start:
            raise Unmendable(
                f"{self.url}/{file}: the server sends the whole file instead of a part; it must support byte ranges"
            )
        if len(data) < end - start:
            raise OSError(f"received {len(data)} bytes instead of {end - start}")
        if time.monotonic() - began < self.timeout_s / 30:
            self._part_bytes = min(max(2 * asked, self._part_bytes), PART_BYTES)
        return data

    @property
    def _exactly(self) -> dict[str, Any]:
        """Options that keep the Hub's file system from reading 5 MB beyond each part."""
        return {"cache_type": "none"} if self.url.startswith("hf://") else {}

    def _counted(self, data: bytes) -> bytes:
        global _received
        with _counting:
            _received += len(data)
        return data

    def size(self, file: str) -> int:
        size = self._retry(file, lambda: self._call("info", self._path(file))).get("size")
        if size is None:
            raise ValueError(f"{self.url}/{file}: the server does not send the file's size (no Content-Length)")
        return int(size)

    def download(self, file: str, size: int, sha256: str, stream: BinaryIO) -> None:
        """Download a file to `stream`, from its beginning. Raises ValueError if the hash is wrong three times."""
        for _ in range(DOWNLOADS):
            stream.seek(0)
            if self.copy(file, size, stream) == sha256:
                return
        raise ValueError(
            f"{self.url}/{file}: {DOWNLOADS} downloads did not match the sha256 in dataset.json; upload the file again"
        )

    def copy(self, file: str, size: int, stream: BinaryIO) -> str:
        """Download a file of `size` bytes to `stream`, without checking its hash; returns its sha256."""
        digest = hashlib.sha256()
        for start in range(0, size, PART_BYTES):
            data = self.read(file, start, min(start + PART_BYTES, size))
            digest.update(data)
            stream.write(data)
        return digest.hexdigest()

    def upload(self, path: Path, file: str) -> None:
        """Upload a local file. It appears complete or not at all, if the store supports that (all object stores do)."""
        timeout_s = self.timeout_s + path.stat().st_size / UPLOAD_BYTES_PER_S
        self._retry(
            file, lambda: self._call("put_file", str(path), self._path(file), timeout_s=timeout_s), timeout_s=timeout_s
        )

    def files(self) -> dict[str, int]:
        """The names and bytes of the files directly under the URL; empty if there are none."""

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
        """The paths, relative to the URL and with "/", and bytes of all files below it; empty if there are none."""

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
        """Make one request. Most fsspec file systems are asynchronous, so the request can have a time limit."""
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
                raise ValueError(f"{where}: this kind of URL is read-only") from None
            except (Unmendable, *DEFECTS):
                raise
            except Exception as error:
                if why := final(error):
                    raise ValueError(f"{where}: {why}") from None
                pause_s = random.uniform(0.5, 1) * min(FIRST_DELAY_S * 2**attempt, LAST_DELAY_S)
                if time.monotonic() + pause_s > deadline:
                    raise ValueError(
                        f"{where}: the store has failed for {timeout_s:g} s and {attempt + 1} requests (last error: "
                        f"{one_line(error.__cause__ or error)}); check that it is up and reachable"
                    ) from None
                time.sleep(pause_s)
        raise AssertionError


def mirror(store: Store, info_file: str, cache_dir: str | os.PathLike[str] = "") -> Path:
    """Download a remote dataset's description and the files that it lists with a sha256, unless the cache has them.

    Returns their directory in the cache. The name of the directory depends on the description, so another dataset
    packed to the same URL gets another directory.
    """
    raw = store.read(info_file)
    try:
        files = {str(name): str(digest) for name, digest in json.loads(raw)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        files = {}  # the reader of the description reports what is wrong with it
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", store.url)[-100:]
    root = cache_root(cache_dir) / "datasets" / f"{name}-{hashlib.sha256(raw).hexdigest()[:16]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{root}: cannot be created ({error.strerror}); set data.cache_dir") from None
    for file, digest in files.items():
        if file != os.path.basename(file) or file.startswith("."):
            raise ValueError(f"{store.url}/{info_file}: {file!r} is not a plain file name; pack the dataset again")
        while not (root / file).exists():
            size = store.size(file)
            make_once(root / file, size, partial(store.download, file, size, digest))
    while not (root / info_file).exists():
        make_once(root / info_file, len(raw), lambda stream: stream.write(raw))
    return root
