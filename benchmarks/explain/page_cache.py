"""Shards out of the page cache, and back in it, so that reading from the disk is told from reading from memory."""

import ctypes
import mmap
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from shards.format import Split
from training import distributed
from training.distributed import World
from training.environment import cgroup_folders

PART_BYTES = 1 << 30  # of a larger split, so many bytes are dropped and loaded again for each turn


def part(split: Split, num_bytes: int = PART_BYTES) -> Split:
    """The first shards of a split, up to so many bytes, one at least; all of a split at a URL."""
    number, total = 0, 0
    while number < len(split.shards) and (not number or total + split.shards[number].bytes <= num_bytes):
        total += split.shards[number].bytes
        number += 1
    if split.url or number == len(split.shards):
        return split
    return replace(split, shards=split.shards[:number], samples=split.samples[split.samples["shard"] < number])


def paths_of(split: Split) -> list[Path]:
    return [split.shard_path(shard) for shard in range(len(split.shards))]


def load(paths: list[Path]) -> None:
    for path in paths:
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def resident_share(paths: list[Path]) -> float:
    """The share of the files' pages in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    resident, pages = 0, 0
    for path in paths:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            flags = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            address, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))
            if libc.mincore(address, length, ctypes.c_void_p(flags.ctypes.data)):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
            resident, pages = resident + int((flags & 1).sum()), pages + len(flags)
            del view
    return resident / pages


def drop(split: Split, world: World) -> float:
    """Drop a split's shards from the page cache; all ranks call it together. Returns the share of their pages that is
    still there, 0 to 1.

    The kernel drops no page that a process has mapped: the maps of this process and the other ranks' let go of theirs
    first, which costs their readers a page fault and nothing else.
    """
    paths = paths_of(split)
    _unmap_pages({str(path.resolve()) for path in paths})
    distributed.from_rank_0(0.0, world)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not written yet is not dropped either
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    stayed = resident_share(paths)
    distributed.from_rank_0(0.0, world)
    return stayed


def _unmap_pages(paths: set[str]) -> None:
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in paths:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def restore(split: Split, world: World) -> None:
    """Have the shards in the page cache again."""
    load(paths_of(split))
    distributed.from_rank_0(0.0, world)


def sequential_s(split: Split, world: World) -> float:
    """Seconds an image that it takes to read dropped shards one after the other."""
    drop(split, world)
    started = time.perf_counter()
    load(paths_of(split))
    return (time.perf_counter() - started) / sum(info.samples for info in split.shards)


def memory_bytes() -> float:
    """What the page cache can grow to without swapping: the kernel's estimate, or what the control group leaves."""
    free = [float("inf")]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")]
    for folder in cgroup_folders():
        with suppress(OSError, ValueError):
            free.append(float((folder / "memory.max").read_text()))
    return min(free)
