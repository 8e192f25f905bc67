"""Images/s of the loader with the shards out of the page cache, by how far it reads ahead, beside the warm rate. CPU.

    python benchmarks/studies/cold.py --data DIR [--json FILE]

The training shards are copied into one larger set under --work (a small set is read in a moment), on the disk to be
measured. Before each cold repeat they are synced and dropped (`posix_fadvise` DONTNEED), and mincore(2) says how much
has stayed. A repeat is the first `--seconds` of an epoch, its first batch included; all cases come in turn.

`off` asks the kernel for nothing: every image is a page fault, and what is read is the kernel's guess, whose window
(`read_ahead_kb`) is shown. Major faults are those that waited for the disk; the bytes read tell what the guess costs.
"""

import ctypes
import json
import mmap
import os
import resource
import statistics
import sys
import tempfile
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from pipeline.augment import AugmentConfig
from pipeline.build import build_loader
from pipeline.config import DataConfig
from pipeline.feed import Feed
from pipeline.reader import ShardReader
from shard_tools.format import ShardSet, Split
from training import environment


@dataclass(frozen=True)
class Case:
    """One setting of the loader, and whether it starts with the shards in memory."""

    order: Any
    read_ahead: int | None  # None: off
    warm: bool

    @property
    def name(self) -> str:
        ahead = "off" if self.read_ahead is None else self.read_ahead
        return f"{self.order}, read_ahead {ahead}, {'warm' if self.warm else 'cold'}"


def enlarged(split: Split, copies: int, out: Path) -> Split:
    """The split with its shards copied so many times under `out`, each with its own rows."""
    shards, tables = [], []
    for copy in range(copies):
        for shard, info in enumerate(split.shards):
            name = f"{copy:04d}-{info.file}"
            (out / name).write_bytes(split.shard_path(shard).read_bytes())  # not a link: other blocks of the disk
            shards.append(replace(info, file=name))
        rows = split.samples.copy()
        rows["shard"] += copy * len(split.shards)
        tables.append(rows)
    return replace(split, root=out, shards=tuple(shards), samples=np.concatenate(tables))


def drop(paths: list[Path]) -> float:
    """Write these files back and drop their pages. Returns the share that is still in memory, 0 to 1."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return resident_share(paths)


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


def sequential_mb_per_s(paths: list[Path], limit_bytes: int = 1 << 29) -> float:
    """How fast the dropped files are read one after the other: the disk's own pace."""
    drop(paths)
    count, started = 0, time.perf_counter()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                count += len(piece)
        if count >= limit_bytes:
            break
    return count / 1e6 / (time.perf_counter() - started)


def random_mb_per_s(split: Split, seconds: float = 2.0) -> float:
    """How fast dropped images are read one by one in random order, by one reader: the disk's latency."""
    drop(paths_of(split))
    files = [os.open(path, os.O_RDONLY) for path in paths_of(split)]
    for descriptor in files:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    count, started = 0, time.perf_counter()
    for row in split.samples[np.random.default_rng(0).permutation(len(split))]:
        count += len(os.pread(files[row["shard"]], int(row["size"]), int(row["offset"])))
        if time.perf_counter() - started > seconds:
            break
    elapsed = time.perf_counter() - started
    for descriptor in files:
        os.close(descriptor)
    return count / 1e6 / elapsed


def paths_of(split: Split) -> list[Path]:
    return [split.shard_path(shard) for shard in range(len(split.shards))]


def disk_read_mb() -> float:
    """What this process has had read from the disk so far, also by asking for it."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"]) / 1e6


def kernel_window_kb(path: Path) -> str:
    """`read_ahead_kb` of the disk that holds the path, or "?"."""
    device = path.stat().st_dev
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for folder in (disk, disk.parent):
        if (folder / "queue/read_ahead_kb").exists():
            return (folder / "queue/read_ahead_kb").read_text().strip()
    return "?"


def measure(case: Case, split: Split, config: DataConfig, sizes: tuple[int, int], seconds: float) -> dict[str, float]:
    """The first `seconds` of an epoch: images/s, seconds to the first batch, major faults, MB read."""
    batch_size, threads = sizes
    config = replace(config, order=case.order, read_ahead=case.read_ahead or 0)
    feed = Feed(
        split=split, config=config, augment=AugmentConfig(), batch_size=batch_size, global_batch_size=batch_size
    )
    off = mock.patch.object(ShardReader, "read_ahead", return_value=None)
    built = build_loader(feed, device=torch.device("cpu"), threads=threads)
    with closing(built) as loader, off if case.read_ahead is None else nullcontext():
        if case.warm:
            load(paths_of(split))
            stayed = resident_share(paths_of(split))
        else:
            stayed = drop(paths_of(split))
        faults, read_mb = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, disk_read_mb()
        count, first, started = 0, 0.0, time.perf_counter()
        for batch in loader.iter_epoch(0):
            first = first or time.perf_counter() - started
            count += len(batch.labels)
            if time.perf_counter() - started > seconds:
                break
        elapsed = time.perf_counter() - started
        return {
            "images_per_s": count / elapsed,
            "first_batch_s": first,
            "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
            "read_mb": disk_read_mb() - read_mb,
            "resident_before": stayed,
        }


@click.command(context_settings={"show_default": True})
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A packed dataset.")
@click.option("--work", type=click.Path(path_type=Path, exists=True), help="Where to copy to.  [default: the system's]")
@click.option("--megabytes", default=1000, type=click.IntRange(min=1), help="Size of the enlarged set.")
@click.option("--aheads", default="off,0,4,16", help="Values of read_ahead.")
@click.option("--block-size", default=64)
@click.option("--window-blocks", default=16)
@click.option("--image-size", default=224)
@click.option("--batch-size", default=100)
@click.option("--threads", default=2)
@click.option("--seconds", default=3.0)
@click.option("--repeats", default=3)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    data: Path, work: Path | None, megabytes: int, aheads: str, block_size: int, window_blocks: int, image_size: int,
    batch_size: int, threads: int, seconds: float, repeats: int, json_file: Path | None,
) -> None:  # fmt: skip
    """Measure, print a table, write JSON."""
    try:
        source = ShardSet.open(data).split("train")
        config = DataConfig(image_size=image_size, block_size=block_size, window_blocks=window_blocks)
        values = [None if value == "off" else int(value) for value in aheads.split(",")]
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    cases = [Case(order, ahead, False) for order in ("global", "block") for ahead in values]
    cases += [Case(order, DataConfig().read_ahead, True) for order in ("global", "block")]
    with tempfile.TemporaryDirectory(prefix="penstock-cold-", dir=work) as folder:
        copies = -(-megabytes * 1_000_000 // sum(info.bytes for info in source.shards))
        split = enlarged(source, copies, Path(folder))
        size_mb = sum(info.bytes for info in split.shards) / 1e6
        disk = {"sequential_mb_per_s": sequential_mb_per_s(paths_of(split)), "random_mb_per_s": random_mb_per_s(split)}
        click.echo(f"{len(split):,} images, {size_mb:,.0f} MB. The disk alone: {disk['sequential_mb_per_s']:,.0f} MB/s "
                   f"in order, {disk['random_mb_per_s']:,.0f} MB/s image by image; "
                   f"read_ahead_kb {kernel_window_kb(Path(folder))}")  # fmt: skip
        measure(cases[-1], split, config, (batch_size, threads), 1.0)  # compiles
        taken: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
        for _ in range(repeats):
            for case in cases:
                taken[case.name].append(measure(case, split, config, (batch_size, threads), seconds))
    click.echo(f"{'':<30}{'images/s':>20}{'of warm':>9}{'first batch':>13}{'major faults':>14}{'MB read':>9}"
               f"{'resident':>10}")  # fmt: skip
    for case in cases:
        runs = taken[case.name]
        warm = taken[Case(case.order, DataConfig().read_ahead, True).name]
        rates = [run["images_per_s"] for run in runs]
        ratio = statistics.median(a["images_per_s"] / b["images_per_s"] for a, b in zip(runs, warm, strict=True))
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        click.echo(
            f"{case.name:<30}{middle['images_per_s']:>7,.0f} [{min(rates):,.0f}–{max(rates):,.0f}]".ljust(50)
            + f"{ratio:>9.2f}{middle['first_batch_s']:>11.2f} s{middle['major_faults']:>14,.0f}"
            + f"{middle['read_mb']:>9,.0f}{middle['resident_before']:>10.1%}"
        )
    if json_file:
        settings = {"data": data.name, "megabytes": size_mb, "block_size": block_size, "window_blocks": window_blocks,
                    "image_size": image_size, "batch_size": batch_size, "threads": threads,
                    "seconds": seconds}  # fmt: skip
        content = {"settings": settings, "disk": disk, "results": taken, "environment": environment.describe()}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
