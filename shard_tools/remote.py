"""Files of an object store by URL (s3://, gs://, https://, memory:// …), through fsspec, with retries and time-outs.

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
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from shard_tools.cache import cache_root, make_once

T = TypeVar("T")
TIMEOUT_S = 60.0
PART_BYTES = 8 << 20  # asked for in one request
DOWNLOADS = 3  # of a file whose bytes are not those that were packed
UPLOAD_BYTES_PER_S = 1 << 20  # slower than this is taken for dead
FIRST_DELAY_S, LAST_DELAY_S = 0.1, 5.0
# what no second try mends; by name, since each store's client has its own
DENIED = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
          "TokenRetrievalError", "DefaultCredentialsError", "RefreshError"}  # fmt: skip
DEFECTS = (TypeError, AttributeError, NameError, LookupError, ImportError, NotImplementedError)


def is_url(path: str | os.PathLike[str]) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)) is not None


class Store:
    """The files directly under one URL.

    A request that fails is made again, after a pause that doubles and is drawn at random, until `timeout_s` seconds
    have passed since it was first made; one that hangs is given up after a third of that.

    Raises:
        ValueError: the URL's kind is unknown or its package is missing; and from every method: the file, bucket or
            permission is missing, or the store fails for `timeout_s`.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._opened: tuple[int, Any, str] | None = None
        self._filesystem()

    def _filesystem(self) -> tuple[Any, str]:
        """fsspec's file system, which does not survive a fork, and the URL's path in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.config import conf
            from fsspec.core import url_to_fs

            options: dict[str, Any] = {}
            if self.url.startswith(("s3://", "s3a://")):  # or botocore would retry too
                config = conf.get("s3", {}).get("config_kwargs", {})
                options["config_kwargs"] = config | {"retries": {"total_max_attempts": 1}}
            try:
                filesystem, path = url_to_fs(self.url, **options)
            except ImportError as error:
                remedy = "pip install " + {"s3": "s3fs", "gs": "gcsfs"}.get(self.url.partition(":")[0], "that package")
                raise ValueError(f"{self.url}: {_one_line(error)}; {remedy}") from None
            except (ValueError, OSError) as error:
                raise ValueError(f"{self.url}: cannot be opened ({_one_line(error)})") from None
            if hasattr(filesystem, "retries"):  # s3fs's own, which no deadline ends
                filesystem.retries = 1
            if not (log := logging.getLogger("gcsfs")).level:  # it writes tracebacks of errors that are told in a line
                log.setLevel(logging.CRITICAL)
            self._opened = os.getpid(), filesystem, path.rstrip("/")
        return self._opened[1:]

    def read(self, file: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes start…end-1 of a file, or all."""

        def whole(data: bytes) -> bytes:
            if start is not None and end is not None and len(data) != end - start:
                raise OSError(f"{len(data)} bytes came instead of {end - start}")
            return data

        return self._retry(file, lambda: whole(self._call("cat_file", self._path(file), start=start, end=end)))

    def size(self, file: str) -> int:
        return int(self._retry(file, lambda: self._call("info", self._path(file)))["size"])

    def download(self, file: str, size: int, sha256: str, stream: BinaryIO) -> None:
        """Write a file to `stream`, from its beginning. Raises ValueError if it has not this hash, three times."""
        for _ in range(DOWNLOADS):
            stream.seek(0)
            digest = hashlib.sha256()
            for start in range(0, size, PART_BYTES):
                data = self.read(file, start, min(start + PART_BYTES, size))
                digest.update(data)
                stream.write(data)
            if digest.hexdigest() == sha256:
                return
        raise ValueError(
            f"{self.url}/{file}: {DOWNLOADS} downloads have another sha256 than dataset.json says; upload it again"
        )

    def upload(self, path: Path, file: str) -> None:
        """Store a local file, which appears whole or not at all where the store can do that (all object stores do)."""
        timeout_s = self.timeout_s + path.stat().st_size / UPLOAD_BYTES_PER_S
        self._retry(file, lambda: self._call("put_file", str(path), self._path(file), timeout_s=timeout_s))

    def files(self) -> list[str]:
        """Names of what lies under the URL; none where nothing does."""

        def names() -> list[str]:
            filesystem, path = self._filesystem()
            filesystem.invalidate_cache()
            try:
                found = self._call("ls", path, detail=False)
            except FileNotFoundError:
                return []
            return [name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != path]

        return self._retry("", names)

    def _path(self, file: str) -> str:
        return f"{self._filesystem()[1]}/{file}"

    def _call(self, method: str, *arguments: Any, timeout_s: float = 0.0, **options: Any) -> Any:
        """One request. Most of fsspec's file systems are asynchronous and can be told to stop waiting."""
        from fsspec.asyn import sync

        filesystem, _ = self._filesystem()
        if not filesystem.async_impl:
            return getattr(filesystem, method)(*arguments, **options)

        async def bounded() -> Any:
            request = getattr(filesystem, f"_{method}")(*arguments, **options)
            return await asyncio.wait_for(request, timeout_s or self.timeout_s / 3)

        return sync(filesystem.loop, bounded)

    def _retry(self, file: str, request: Callable[[], T]) -> T:
        where = f"{self.url}/{file}" if file else self.url
        deadline = time.monotonic() + self.timeout_s
        for attempt in count():
            try:
                return request()
            except NotImplementedError:
                raise ValueError(f"{where}: this kind of URL can only be read") from None
            except DEFECTS:
                raise
            except Exception as error:
                if _is_missing(error):
                    raise ValueError(f"{where}: there is no such file or bucket; look at the URL") from None
                if _is_denied(error):
                    raise ValueError(f"{where}: no permission ({_one_line(error)}); set the credentials") from None
                pause_s = random.uniform(0.5, 1) * min(FIRST_DELAY_S * 2**attempt, LAST_DELAY_S)
                if time.monotonic() + pause_s > deadline:
                    raise ValueError(
                        f"{where}: the store has failed for {self.timeout_s:g} s and {attempt + 1} requests, the last "
                        f"with {_one_line(error.__cause__ or error)}; see that it is up and can be reached"
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


def _is_missing(error: Exception) -> bool:
    """fsspec's HTTP says so too where it cannot connect."""
    cause = error.__cause__
    unreachable = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    status = getattr(cause, "status", None)
    return isinstance(error, FileNotFoundError) and not unreachable and status in (None, 404, 410)


def _is_denied(error: Exception) -> bool:
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)  # aiohttp's
    status = status or getattr(error, "code", None)  # gcsfs's, whose 403 is an OSError with that text
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden: ")
    return isinstance(error, PermissionError) or forbidden or type(error).__name__ in DENIED or status in (401, 403)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
