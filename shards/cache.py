"""A bounded directory of downloaded files that processes share: name → open file, made once, least recently used out.

A file is made under a temporary name that its maker holds locked, and renamed when it is whole. So two processes never
make the same file, and what a killed one left is seen by its missing lock. Whoever uses a file holds it locked too,
shared, as long as the descriptor or a memory map made of it lives; such files are never removed.

Locks are given back explicitly: a process that was forked meanwhile has the descriptor too, and would keep them.

The directory must lie on a file system with `flock`: any local disk.
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
WAIT_S = 30.0  # for room, while all files are in use
POLL_S = 0.02
BULK_FILES = 64  # small files are removed so many at a time, since each time all are listed
SMALL_BYTES = 64 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
FREE_SHARE = 0.9  # of the disk's free space, where no bound is given


def cache_root(cache_dir: str | os.PathLike[str] = "") -> Path:
    """`cache_dir`, or where the user's caches are ($XDG_CACHE_HOME, ~/.cache).

    Raises:
        ValueError: the user has no home.
    """
    if cache_dir:
        return Path(cache_dir).absolute()
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise ValueError("there is no home directory to cache in; set data.cache_dir or XDG_CACHE_HOME") from None
    return Path(caches).absolute() / "penstock"


class Cache:
    """At most `max_bytes` of files in `root`, those being made included; 0: nine tenths of what the disk has free.

    Raises:
        ValueError: `root` cannot be made or written to; all of its files are in use and there is no room for more.
    """

    def __init__(self, root: Path, max_bytes: int = 0) -> None:
        self.root = root
        with _writing(root):
            root.mkdir(parents=True, exist_ok=True)
            remove_stale(root)
            self.max_bytes = max_bytes or int(FREE_SHARE * (shutil.disk_usage(root).free + _disk_bytes(root)))

    def open(self, name: str, size: int, make: Callable[[BinaryIO], object]) -> int:
        """A descriptor of the file `name` of `size` bytes, which `make` writes if it is not there. The file stays as
        long as the descriptor or a memory map of it is open."""
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
            return descriptor  # should it have been removed before the lock was had, its bytes are still there

    def _make_room(self, name: str, temporary: BinaryIO, size: int) -> None:
        """Lengthen a temporary file to `size`, once files enough are removed for it to fit."""
        temporary.truncate(0)
        deadline, used = time.monotonic() + WAIT_S, 0
        while size <= self.max_bytes:
            # .used says at least what there is: files come under this lock
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
            f"{self.root}: no room for the {size} bytes of {name}: data.cache_bytes is {self.max_bytes}, "
            f"{used} bytes are in use; raise it"
        )

    def _evict(self, size: int) -> int:
        """Remove files that are not in use until `size` bytes fit, oldest first; returns the bytes left."""
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
    """Have `make` write `size` bytes to the file `path`, unless it is there or another process makes it: then wait.

    `before` is given the temporary file as soon as it is this process that makes it. The other process may have failed,
    so callers look again whether the file is there.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with _writing(path), open(temporary, "ab") as ours:
        while not _lock(ours):  # until another maker is ready, or dead
            if not _is_at(ours, temporary):
                return  # renamed, and perhaps in use and locked for long
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
    """Remove what processes that are no more have left half made."""
    for path in root.glob(f".*{TEMPORARY}"):
        _remove_unused(path)


@contextmanager
def _locked(stream: BinaryIO) -> Iterator[None]:
    """Lock a file for this process alone, waiting for whoever has it."""
    fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def _lock(stream: BinaryIO) -> bool:
    """Lock a file for this process alone, if nobody has locked it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unused(path: Path) -> bool:
    """Remove a file that nobody holds locked; tells whether."""
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
    """Whether an open file still has this name."""
    try:
        there, ours = path.stat(), os.fstat(stream.fileno())
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _scan(root: Path) -> tuple[int, list[tuple[int, int, Path]]]:
    """Bytes of all files, and (last use in ns, bytes, path) of those that are whole."""
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
    """What the files take of the disk: less than their lengths, for those that are being written."""
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
            "make room there, or set data.cache_dir" if error.errno in FULL else "set data.cache_dir to another place"
        )
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from None
