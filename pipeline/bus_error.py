"""Explain a bus error: a mapped shard was truncated, or its disk failed, while it was being read.

The kernel then sends the signal SIGBUS to the reading thread, one of DALI's. The process cannot continue, and a Python
signal handler would never run. So the kernel calls this handler directly, through ctypes. The handler waits for
Python's lock, finds a file that is shorter than before, prints one line and ends the process.
"""

import ctypes
import os
import signal
from pathlib import Path

EXIT_CODE = 1

_sizes: dict[Path, int] = {}


def explain(path: Path, size: int) -> None:
    """Register a mapped file. If it has fewer bytes than `size` when a bus error occurs, the message names it."""
    if not _sizes and hasattr(signal, "SIGBUS"):  # Windows has none
        ctypes.CDLL(None).signal(signal.SIGBUS, _HANDLER)
    _sizes[path] = size


def _handle(number: int) -> None:
    os.write(2, f"Error: {_cause()}\n".encode(errors="surrogateescape"))
    os._exit(EXIT_CODE)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_handle)  # kept here: the kernel holds no reference


def _cause() -> str:
    for path, size in _sizes.items():
        try:
            now = path.stat().st_size
        except OSError as error:
            return f"{path}: this shard disappeared while it was being read ({error.strerror})"
        if now < size:
            return (
                f"{path}: this shard was cut from {size} to {now} bytes while it was being read; "
                f"pack the dataset again, then resume from the last checkpoint with the same command"
            )
    folder = os.path.commonpath([path.parent for path in _sizes])
    return (
        f"{folder}: a shard there cannot be read any more (bus error, typical of a failing disk); see the kernel's log"
    )
