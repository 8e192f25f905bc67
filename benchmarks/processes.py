"""This process's relatives: who counts as ours, and what memory they take."""

import os
from collections.abc import Iterable
from contextlib import suppress

import psutil


def family(pid: int | None = None) -> list[psutil.Process]:
    """A process with its descendants. By default this one; of a rank, the torchrun that started it and the others."""
    if pid is None and "TORCHELASTIC_RUN_ID" in os.environ:
        pid = os.getppid()
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def memory_mb(processes: Iterable[psutil.Process]) -> float:
    """MB (10⁶ bytes) that processes have in memory, as proportional set size (PSS).

    A page that several of them share counts once, as does what they have mapped of files and have touched.
    """
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # it has ended meanwhile, or is not ours to look at
            total += process.memory_full_info().pss
    return total / 1e6
