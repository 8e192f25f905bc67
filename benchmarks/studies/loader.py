"""Images/s of the loader beside DALI's own example graph and torchvision's loader, in turn in one run, on the CPU.

    python benchmarks/studies/loader.py --data DIR [--json FILE]

Each program decodes the training split (its table's rows repeated to `--rows`) with random-resized crops and flips, and
delivers normalised float32 batches as torch tensors. The ratio is taken repeat by repeat, so that a machine's drift
does not count.

`example` is the graph of DALI's webdataset and ImageNet examples (`readers.webdataset`, `decoders.image_random_crop`,
`resize`, `crop_mirror_normalize`), its batches copied out as the examples' iterators do; `example-zero-copy` hands them
over by DLPack. `reference` is torchvision and PIL in worker processes, with Penstock's plan.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from pipeline.augment import AugmentConfig
from pipeline.build import build_loader
from pipeline.config import DataConfig
from pipeline.feed import Feed
from shard_tools.format import ShardSet, Split
from training import environment

SETTLE_BATCHES = 8  # before each repeat: what was decoded ahead while another program ran is no gain
MEAN, STD = DataConfig().mean, DataConfig().std


def repeated(split: Split, num_rows: int) -> Split:
    """The split with its table's rows repeated to at least `num_rows`."""
    return replace(split, samples=np.tile(split.samples, -(-num_rows // len(split))))


def planned(split: Split, loader: Any, image_size: int, batch_size: int, threads: int) -> Iterator[torch.Tensor]:
    """Penstock's loader, or its torchvision reference."""
    feed = Feed(
        split=split,
        config=DataConfig(loader=loader, image_size=image_size),
        augment=AugmentConfig(),
        batch_size=batch_size,
        global_batch_size=batch_size,
    )
    built = build_loader(feed, device=torch.device("cpu"), threads=threads)
    epoch = 0
    while True:
        for batch in built.iter_epoch(epoch):
            yield batch.images
        epoch += 1


def example(split: Split, image_size: int, batch_size: int, threads: int, copy: bool) -> Iterator[torch.Tensor]:
    """DALI's example graph."""
    from nvidia.dali import Pipeline, fn, types

    pipe = Pipeline(batch_size=batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=2, seed=1)
    shards = range(len(split.shards))
    with pipe:
        jpegs, _ = fn.readers.webdataset(
            paths=[str(split.shard_path(shard)) for shard in shards],
            index_paths=[str(split.index_path(shard)) for shard in shards],
            ext=["jpg", "cls"],
            random_shuffle=True,
            pad_last_batch=True,
        )
        images = fn.decoders.image_random_crop(
            jpegs, output_type=types.RGB, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0], num_attempts=100
        )
        images = fn.resize(images, size=[image_size, image_size], interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="CHW", mean=list(MEAN), std=list(STD), mirror=fn.random.coin_flip()
        )
        pipe.set_outputs(images)
    pipe.build()
    while True:
        (out,) = pipe.run()
        yield torch.from_numpy(out.as_array()) if copy else torch.from_dlpack(out.as_tensor())


def measure(batches: Iterator[torch.Tensor], seconds: float) -> float:
    """Images/s over `seconds`."""
    for _ in range(SETTLE_BATCHES):
        next(batches)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        count += len(next(batches))
    return count / elapsed


@click.command(context_settings={"show_default": True})
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A packed dataset.")
@click.option("--against", type=click.Path(path_type=Path), help="The packed dataset of the peers.  [default: --data]")
@click.option("--peers", default="example,example-zero-copy,reference", help="Comma-separated; empty for none.")
@click.option("--rows", default=4000, help="Repeat the table's rows to at least this many.")
@click.option("--image-size", default=224)
@click.option("--batch-size", default=100)
@click.option("--threads", default=2, help="Decode threads; worker processes of the reference.")
@click.option("--seconds", default=5.0)
@click.option("--repeats", default=5)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    data: Path, against: Path | None, peers: str, rows: int, image_size: int, batch_size: int, threads: int,
    seconds: float, repeats: int, json_file: Path | None,
) -> None:  # fmt: skip
    """Measure, print a table, write JSON."""
    own = repeated(ShardSet.open(data).split("train"), rows)
    other = repeated(ShardSet.open(against or data).split("train"), rows)
    sizes: Any = (image_size, batch_size, threads)
    known: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
        "penstock": lambda: planned(own, "dali", *sizes),
        "example": lambda: example(other, *sizes, copy=True),
        "example-zero-copy": lambda: example(other, *sizes, copy=False),
        "reference": lambda: planned(other, "reference", *sizes),
    }
    names = ["penstock", *filter(None, peers.split(","))]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.ClickException(f"--peers: no program {unknown[0]!r}; there are {', '.join(known)}")
    programs = {name: known[name]() for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, batches in programs.items():
            rates[name].append(measure(batches, seconds))
    result: dict[str, Any] = {}
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["penstock"], values, strict=True)]
        result[name] = {"images_per_s": values, "ratio": ratios}
        click.echo(
            f"{name:<20} {statistics.median(values):8,.0f} images/s [{min(values):,.0f}–{max(values):,.0f}]"
            f"   penstock is {statistics.median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}] times it"
        )
    if json_file:
        settings = {
            "rows": rows, "image_size": image_size, "batch_size": batch_size, "threads": threads,
            "seconds": seconds, "repeats": repeats, "data": data.name, "against": (against or data).name,
        }  # fmt: skip
        about = environment.describe()
        json_file.write_text(
            json.dumps({"settings": settings, "results": result, "environment": about}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
