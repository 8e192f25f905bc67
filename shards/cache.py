"""A directory of downloaded files with a size limit, shared by processes; it evicts the least recently used files.

The process that makes a file writes it under a temporary name, holds a lock on it, and renames it when it is complete.
Two processes therefore never make the same file, and a temporary file without a lock was left by a killed process.
A process that uses a file holds a shared lock on it as long as its descriptor or a memory map of it is open. Locked
files are never removed.

Locks are released explicitly: a process forked in the meantime shares the descriptor and would keep the lock.

The directory must be on a file system that supports `flock`, such as any local disk.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".part"
WAIT_S = 30.0  # time to wait for room while all files are in use
POLL_S = 0.02
BULK_FILES = 64  # small files are removed in batches of this size, because each eviction lists all files
SMALL_BYTES = 64 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
FREE_SHARE = 0.9  # share of the disk's free space to use if no limit is given


def cache_root(cache_dir: str | os.PathLike[str] = "") -> Path:
    """Return `cache_dir`, or a directory in the user's cache ($XDG_CACHE_HOME or ~/.cache).

    Raises:
        ValueError: the user has no home directory.
    """
    if cache_dir:
        return Path(cache_dir).absolute()
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise ValueError("no home directory for the cache; set data.cache_dir or XDG_CACHE_HOME") from None
    return Path(caches).absolute() / "penstock"


class Cache:
    """A cache of at most `max_bytes` in `root`, including unfinished files; 0 means nine tenths of the free disk space.

    Raises:
        ValueError: `root` cannot be created or written, or all of its files are in use and there is no room for more.
    """

    def __init__(self, root: Path, max_bytes: int = 0) -> None:
        self.root = root
        with _writing(root):
            root.mkdir(parents=True, exist_ok=True)
            remove_stale(root)
            self.max_bytes = max_bytes or int(FREE_SHARE * (shutil.disk_usage(root).free + _disk_bytes(root)))

    def open(self, name: str, size: int, make: Callable[[BinaryIO], object]) -> int:
        """Open the file `name` of `size` bytes and return its descriptor; `make` writes the file if it is missing. The
        file stays in the cache as long as the descriptor or a memory map of it is open."""
        path = self.root / name
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                make_once(path, size, make, lambda temporary: self._make_room(name, temporary, size))
                continue
            except OSError as error:
                raise ValueError(f"{path}: cannot be read ({error.strerror}); set data.cache_dir") from None
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with suppress(OSError):
                os.utime(descriptor)
            return descriptor  # if the file was removed before we locked it, its bytes are still readable

    def _make_room(self, name: str, temporary: BinaryIO, size: int) -> None:
        """Remove enough files to fit `size` bytes, then extend the temporary file to that size."""
        temporary.truncate(0)
        deadline, used = time.monotonic() + WAIT_S, 0
        while size <= self.max_bytes:
            # .used is never less than the bytes in the cache: files are added only under this lock
            with open(self.root / ".used", "ab+") as stream, _locked(stream):
                stream.seek(0)
                text = stream.read()
                known = int(text) if text.isdigit() else None
                used = self._evict(size) if known is None or known + size > self.max_bytes else known
                if used + size <= self.max_bytes:
                    temporary.truncate(size)
                    stream.truncate(0)
                    stream.write(b"%d" % (used + size))
                    stream.flush()
                    return
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        raise ValueError(
            f"{self.root}: no room for the {size} bytes of {name}: data.cache_bytes is {self.max_bytes} and {used} "
            "bytes are in use; raise data.cache_bytes"
        )

    def _evict(self, size: int) -> int:
        """Remove unused files, oldest first, until `size` bytes fit; returns the bytes still used."""
        used, files = _scan(self.root)
        if used + size <= self.max_bytes:
            return used
        spare = min((BULK_FILES - 1) * size, self.max_bytes // 16) if size < SMALL_BYTES else 0
        for _, size_bytes, path in sorted(files):
            if used + size + spare <= self.max_bytes:
                break
            used -= size_bytes if _remove_unused(path) else 0
        return used


def make_once(
    path: Path, size: int, make: Callable[[BinaryIO], object], before: Callable[[BinaryIO], object] | None = None
) -> None:
    """Call `make` to write `size` bytes to the file `path`. Do nothing if the file exists. If another process is making
    it, wait for that process.

    `before` is called with the temporary file once this process has locked it. The other process may have failed, so
    callers must check again that the file exists.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with _writing(path), open(temporary, "ab") as ours:
        while not _lock(ours):  # until the process that makes it finishes or dies
            if not _is_at(ours, temporary):
                return  # it was renamed, and may now be in use and locked for a long time
            time.sleep(POLL_S)
        try:
            if not _is_at(ours, temporary):
                return
            if path.exists():
                return
            if before:
                before(ours)
            with open(temporary, "r+b") as stream:  # `ours` can only append
                make(stream)
                if stream.tell() != size:
                    raise ValueError(f"{path}: {stream.tell()} bytes were written instead of {size}")
                stream.truncate()
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            if _is_at(ours, temporary):
                temporary.unlink()
            fcntl.flock(ours, fcntl.LOCK_UN)


def remove_stale(root: Path) -> None:
    """Remove unfinished files of processes that no longer run."""
    for path in root.glob(f".*{TEMPORARY}"):
        _remove_unused(path)


@contextmanager
def _locked(stream: BinaryIO) -> Iterator[None]:
    """Lock a file exclusively; wait until the lock is free."""
    fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def _lock(stream: BinaryIO) -> bool:
    """Lock a file exclusively if it is not locked; returns whether that worked."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unused(path: Path) -> bool:
    """Remove a file unless it is locked; returns whether it is gone."""
    try:
        with open(path, "rb") as stream:
            unused = _lock(stream)
            if unused and _is_at(stream, path):
                path.unlink()
            if unused:
                fcntl.flock(stream, fcntl.LOCK_UN)
            return unused
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        there, ours = path.stat(), os.fstat(stream.fileno())
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _scan(root: Path) -> tuple[int, list[tuple[int, int, Path]]]:
    """Return the bytes of all files, and (last use in ns, bytes, path) of each complete file."""
    used, files = 0, []
    with os.scandir(root) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if not entry.is_file(follow_symlinks=False) or entry.name == ".used":
                    continue
                used += status.st_size
                if not entry.name.startswith("."):
                    files.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
    return used, files


def _disk_bytes(root: Path) -> int:
    """The disk space that the files use; unfinished files use less than their length."""
    total = 0
    with os.scandir(root) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += 512 * entry.stat(follow_symlinks=False).st_blocks
    return total


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = (
            "free some space, or set data.cache_dir" if error.errno in FULL else "set data.cache_dir to another place"
        )
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from None
