"""The processes that belong to this one, and the memory that they use."""

import os
from collections.abc import Iterable
from contextlib import suppress

import psutil


def family(pid: int | None = None) -> list[psutil.Process]:
    """Return a process with its descendants. Default: this process, or on a rank the torchrun that started it."""
    if pid is None and "TORCHELASTIC_RUN_ID" in os.environ:
        pid = os.getppid()
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def memory_mb(processes: Iterable[psutil.Process]) -> float:
    """Return the memory of processes in MB (10⁶ bytes), as proportional set size (PSS).

    A page that several of them share counts once. Pages of mapped files count once they were touched.
    """
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # the process has ended meanwhile, or may not be inspected
            total += process.memory_full_info().pss
    return total / 1e6
