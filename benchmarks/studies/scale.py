"""The pipeline at full size: 1.28 million rows from start to first batch, and the plan alone for a billion samples.

    python benchmarks/studies/scale.py --data DIR [--json FILE]

A temporary dataset is made whose table repeats DIR's training rows to `--rows` (the shards are links). Then

- fresh processes open it and take the first batch: seconds after start and after the imports, and the memory;
- the costs of planning and feeding a batch are measured part by part, beside the time in which that batch is decoded;
- `--many` samples in `block` order on 1,024 ranks: time and memory a rank, with a table that refuses to be an array.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from pipeline.augment import AugmentConfig, train_params
from pipeline.config import DataConfig
from pipeline.feed import Feed
from shard_tools.format import SAMPLE_DTYPE, ShardSet, Split, write_info, write_split

RANKS = 1024
WARMUP_BATCHES = 8


def link_or_copy(source: Path, target: Path) -> None:
    """A dataset's files must lie in it: a hard link where the disk allows it."""
    target.unlink(missing_ok=True)  # of a run that was interrupted
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def repeated_dataset(source: ShardSet, rows: int, out: Path) -> None:
    """Write a dataset whose training table repeats the source's to `rows`."""
    split = source.split("train")
    table = np.resize(split.samples, rows)
    counts = Counter(table["shard"].tolist())
    shards = [replace(info, samples=counts[shard]) for shard, info in enumerate(split.shards)]
    for shard, info in enumerate(shards):
        link_or_copy(split.shard_path(shard), out / info.file)
    files = write_split(out, "train", table, (b"repeated\n" for _ in range(rows)))
    write_info(out, source.classes, {"train": shards}, {"repeated": str(source.root)}, files)


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def feed_of(split: Split, config: DataConfig, batch_size: int, **share: int) -> Feed:
    return Feed(
        split=split, config=config, augment=AugmentConfig(), batch_size=batch_size,
        global_batch_size=batch_size * share.get("world_size", 1), **share,
    )  # fmt: skip


def first_batch(data: Path, config: DataConfig, batch_size: int, threads: int, started: float) -> dict[str, float]:
    """In a fresh process: the imports' seconds, then seconds from their end, and memory, up to the first batch."""
    import torch

    from pipeline.build import build_loader

    own = time.monotonic()
    import nvidia.dali.plugin.numba  # noqa: F401

    import pipeline.resize  # noqa: F401  (both are imported when the graph is built, if not here)

    imported = time.monotonic()
    stages = {"imports_s": own - started, "imports_dali_s": imported - own, "imports_mb": resident_mb()}
    dataset = ShardSet.open(data)
    stages |= {"open_s": time.monotonic() - imported, "open_mb": resident_mb()}
    loader = build_loader(
        feed_of(dataset.split("train"), config, batch_size), device=torch.device("cpu"), threads=threads
    )
    stages["loader_s"] = time.monotonic() - imported
    next(loader.iter_epoch(0))
    stages |= {"first_batch_s": time.monotonic() - imported, "first_batch_mb": resident_mb()}
    loader.close()
    return stages


def decode_s(split: Split, config: DataConfig, batch_size: int, threads: int, seconds: float) -> float:
    """Seconds in which the loader delivers a batch. Median over windows of a tenth of `seconds`."""
    import torch

    from pipeline.build import build_loader

    loader = build_loader(feed_of(split, config, batch_size), device=torch.device("cpu"), threads=threads)
    batches = loader.iter_epoch(0)
    for _ in range(WARMUP_BATCHES):
        next(batches)
    taken = []
    until = time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        count = 0
        while time.perf_counter() - now < seconds / 10:
            next(batches)
            count += 1
        taken.append((time.perf_counter() - now) / count)
    loader.close()
    return statistics.median(taken)


def seconds_of(work: Callable[[int], object], seconds: float = 0.5) -> float:
    """Median time of one call; the argument counts the calls."""
    work(0)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while (before := time.perf_counter()) < until or not times:
        work(len(times))
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def costs(split: Split, config: DataConfig, batch_size: int) -> dict[str, float]:
    """Seconds a batch in Python's thread, part by part: `plan` is everything before bytes are touched, made of the four
    below it; the rest hands the batch to DALI."""
    from pipeline.graph import encoded, graph_inputs
    from pipeline.reader import ShardReader

    feed = feed_of(split, config, batch_size)
    plan, augment, reader = feed.plan(0), AugmentConfig(), ShardReader(split)
    spans = list(feed.spans(0))[: max(2, 20_000 // batch_size)]
    planned = [feed.batch(0, span, config.image_size) for span in spans]
    views = [reader.views(batch.sample_ids) for batch in planned]
    rows = [split.samples[batch.sample_ids] for batch in planned]
    parts: dict[str, Callable[[int], object]] = {
        "plan": lambda i: feed.batch(0, spans[i], config.image_size),
        "plan: order": lambda i: plan.sample_ids(spans[i].start, batch_size),
        "plan: table rows": lambda i: split.samples[planned[i].sample_ids],
        "plan: random draws": lambda i: plan.uniforms("random_resized_crop", spans[i].start, batch_size, 22),
        "plan: draws and crops": lambda i: train_params(
            plan, augment, spans[i].start, rows[i]["height"], rows[i]["width"], config.image_size
        ),
        "views": lambda i: reader.views(planned[i].sample_ids),
        "read ahead": lambda i: reader.read_ahead(planned[i].sample_ids),
        "kernel's geometry": lambda i: graph_inputs(planned[i].params, config, on_gpu=False),
        "to DALI": lambda i: encoded(views[i]),
    }
    result = {}
    for name, part in parts.items():
        result[name] = seconds_of(lambda call, part=part: part(call % len(spans)))  # type: ignore[misc]
    views.clear()
    reader.close()
    return result


class Unreadable:
    """A sample table of any length that makes up the rows it is asked for, and refuses anything else."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.asked = num_rows, 0

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, sample_ids: Any) -> np.ndarray:
        if not isinstance(sample_ids, np.ndarray) or len(sample_ids) > 1 << 20:
            raise RuntimeError("the whole table was asked for")
        if sample_ids.min() < 0 or sample_ids.max() >= self.num_rows:
            raise RuntimeError("a sample id is outside the table")
        self.asked += len(sample_ids)
        rows = np.zeros(len(sample_ids), SAMPLE_DTYPE)
        rows["size"], rows["height"], rows["width"] = 110_000, 375, 500
        return rows

    def __array__(self, *args: object, **options: object) -> np.ndarray:
        raise RuntimeError("the whole table was made an array")


def billion(num_samples: int, config: DataConfig, batch_size: int) -> list[dict[str, Any]]:
    """Some ranks at some positions of an epoch of that many: time a batch, peak of what was allocated, memory added."""
    split = Split("train", Path("nowhere"), (), Unreadable(num_samples))  # type: ignore[arg-type]
    config = replace(config, order="block")
    step = batch_size * RANKS
    first = feed_of(split, config, batch_size, rank=0, world_size=RANKS)
    first.batch(0, next(first.spans(0)), config.image_size)  # NumPy loads parts of itself when they are first used
    result = []
    ids = []
    for position in (0, num_samples // 2 // step * step, (num_samples // step - 1) * step):
        for rank in (0, RANKS // 2, RANKS - 1):
            before = resident_mb()
            tracemalloc.start()
            feed = feed_of(split, config, batch_size, rank=rank, world_size=RANKS)
            span = next(feed.spans(position))
            ids.append(feed.batch(0, span, config.image_size).sample_ids)
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            took = seconds_of(lambda _, feed=feed, span=span: feed.batch(0, span, config.image_size), 0.3)  # type: ignore[misc]
            result.append({"rank": rank, "position": span.start, "batch_s": took, "peak_mb": peak,
                           "resident_mb_added": resident_mb() - before})  # fmt: skip
    if len(np.unique(np.concatenate(ids))) != len(ids) * batch_size:
        raise RuntimeError("a sample came twice")
    return result


@click.command(context_settings={"show_default": True})
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A packed dataset.")
@click.option("--rows", default=1_281_167, type=click.IntRange(min=1))
@click.option("--many", default=1_000_000_000, type=click.IntRange(min=2 * RANKS))
@click.option("--batch-size", default=256, type=click.IntRange(min=1))
@click.option("--image-size", default=224, type=click.IntRange(min=1))
@click.option("--threads", default=2, type=click.IntRange(min=1))
@click.option("--starts", default=3, type=click.IntRange(min=1), help="Fresh processes.")
@click.option("--seconds", default=10.0, help="Of decoding, for each order.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@click.option("--started", type=float, hidden=True, help="Be one of the fresh processes.")
def main(
    data: Path, rows: int, many: int, batch_size: int, image_size: int, threads: int, starts: int, seconds: float,
    json_file: Path | None, started: float | None,
) -> None:  # fmt: skip
    """Measure, print tables, write JSON."""
    config = DataConfig(image_size=image_size, val_image_size=image_size, val_resize_size=image_size)
    if started is not None:
        click.echo(json.dumps(first_batch(data, config, batch_size, threads, started)))
        return
    try:
        source = ShardSet.open(data)
        source.split("train")
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    sizes = ["--batch-size", str(batch_size), "--image-size", str(image_size), "--threads", str(threads)]
    result: dict[str, Any] = {"starts": []}
    with tempfile.TemporaryDirectory(prefix="penstock-scale-") as folder:
        repeated_dataset(source, rows, Path(folder))
        for _ in range(starts):
            command = [sys.executable, __file__, "--data", folder, *sizes, "--started", str(time.monotonic())]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result["starts"].append(json.loads(done.stdout.splitlines()[-1]))
        show_starts(result["starts"], rows)
        split = ShardSet.open(folder).split("train")
        for order in ("global", "block"):
            ordered = replace(config, order=order)
            parts = costs(split, ordered, batch_size)
            batch_s = decode_s(split, ordered, batch_size, threads, seconds)
            result[order] = {"decode_s": batch_s, "costs_s": parts}
            show_costs(order, parts, batch_s, batch_size)
    result["many"] = billion(many, config, batch_size)
    click.echo(f"{many:,} samples, block order, {RANKS} ranks of {batch_size}")
    for line in result["many"]:
        click.echo(f"  rank {line['rank']:<5} position {line['position']:>13,} {line['batch_s'] * 1e3:6.2f} ms a "
                   f"batch, peak {line['peak_mb']:.2f} MB, {line['resident_mb_added']:+.1f} MB resident")  # fmt: skip
    if json_file:
        from training import environment

        settings = {"data": data.name, "rows": rows, "many": many, "ranks": RANKS, "batch_size": batch_size,
                    "image_size": image_size, "threads": threads, "load": os.getloadavg()[0]}  # fmt: skip
        content = {"settings": settings, "results": result, "environment": environment.describe()}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


def show_starts(starts: list[dict[str, float]], rows: int) -> None:
    click.echo(f"{rows:,} rows, {len(starts)} fresh processes: median [least–most]; the first may compile")
    for name in starts[0]:
        values = [start[name] for start in starts]
        click.echo(f"  {name:<16}{statistics.median(values):9.2f} [{min(values):.2f}–{max(values):.2f}]")


def show_costs(order: str, parts: dict[str, float], batch_s: float, batch_size: int) -> None:
    click.echo(f"order {order}: a batch of {batch_size} is decoded in {batch_s * 1e3:.1f} ms; Python's part of that")
    for name, cost in parts.items():
        click.echo(f"  {name:<24}{cost / batch_size * 1e6:7.2f} µs a sample{cost / batch_s:8.2%}")


if __name__ == "__main__":
    main()
