"""One line instead of a silent death where a mapped shard is cut off, or its disk fails, while it is being read.

The kernel tells a process so by the signal SIGBUS, wherever it reads: in DALI's threads. There is no going on from
there, and a Python signal handler would never run. So this handler is called by the kernel itself, through ctypes: it
waits for Python's lock, looks which of the files is shorter than it was, says so and ends the process.
"""

import ctypes
import os
import signal
from pathlib import Path

EXIT_CODE = 1

_sizes: dict[Path, int] = {}


def explain(path: Path, size: int) -> None:
    """From now on, a bus error in this process is explained by this file, where it has fewer bytes than `size`."""
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
            return f"{path}: this shard has gone while it was being read ({error.strerror})"
        if now < size:
            return (
                f"{path}: this shard was cut from {size} to {now} bytes while it was being read; "
                f"pack the dataset again, then the same command goes on from the last checkpoint"
            )
    folder = os.path.commonpath([path.parent for path in _sizes])
    return (
        f"{folder}: a shard there cannot be read any more: a bus error, as a failing disk gives; see the kernel's log"
    )
