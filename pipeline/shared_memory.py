"""Memory that the processes of one machine share. It is freed with the last of them, however they end.

The first process makes an anonymous file in memory (memfd_create(2)) and writes its number to a small file. The others
open it through /proc. It is not in /dev/shm, which is small in many containers. A killed run leaves no memory behind,
only the small file, which a later run removes.
"""

import mmap
import os
import re
import tempfile
import weakref
from pathlib import Path


def shared_memory(name: str, num_bytes: int, shared: bool) -> mmap.mmap:
    """Zeroed memory of `num_bytes` > 0. All processes with the same parent and user get the same memory for a `name`.
    If that is not possible, or not `shared`, the memory belongs to this process alone."""
    if not shared or not hasattr(os, "memfd_create"):
        return mmap.mmap(-1, num_bytes)
    import fcntl  # Windows has none

    folder, mine = Path(tempfile.gettempdir()), f"penstock-{os.getuid()}-"
    path = folder / f"{mine}{os.getppid()}-{name}"
    try:
        _tidy(folder, mine)
        with open(path, "a+b") as note:
            fcntl.flock(note, fcntl.LOCK_EX)
            note.seek(0)
            opened = _opened(note.read(), name, num_bytes)
            if opened:
                return opened
            return _made(path, name, num_bytes)
    except OSError:
        return mmap.mmap(-1, num_bytes)


def _tidy(folder: Path, mine: str) -> None:
    """Remove the files of processes with a parent that has ended."""
    for path in folder.glob(f"{mine}*-*"):
        parent = path.name.removeprefix(mine).partition("-")[0]
        if parent.isdigit() and not Path(f"/proc/{parent}").exists():
            path.unlink(missing_ok=True)


def _opened(note: bytes, name: str, num_bytes: int) -> mmap.mmap | None:
    """The memory that another process made and noted in the file, if it still exists."""
    found = re.fullmatch(rb"(\d+) (\d+)", note)
    if not found:
        return None
    path = Path(f"/proc/{int(found[1])}/fd/{int(found[2])}")
    try:
        if name not in str(path.readlink()):  # another process has the number now
            return None
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return mmap.mmap(descriptor, num_bytes) if os.fstat(descriptor).st_size == num_bytes else None
    finally:
        os.close(descriptor)


def _made(path: Path, name: str, num_bytes: int) -> mmap.mmap:
    descriptor = os.memfd_create(f"penstock-{name}")
    os.ftruncate(descriptor, num_bytes)
    memory = mmap.mmap(descriptor, num_bytes)
    path.write_bytes(f"{os.getpid()} {descriptor}".encode())
    # The descriptor stays open, for others to find, as long as this process has the memory
    weakref.finalize(memory, _forget, path, descriptor, os.getpid())
    return memory


def _forget(path: Path, descriptor: int, pid: int) -> None:
    if os.getpid() == pid:
        path.unlink(missing_ok=True)
        os.close(descriptor)
