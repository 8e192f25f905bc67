"""Where the loader's time goes on the CPU: the graph cut off after each stage, in turn in one run.

    python benchmarks/studies/stages.py --data DIR [--json FILE]

`source` plans the epoch and hands over the encoded bytes; `decode` decodes the planned regions; `resize` also crops,
filters and flips; `all` also normalises, which is what `DaliLoader` runs. A stage's cost is the difference between two
rows, in CPU milliseconds an image (all threads) and in images/s.
"""

import itertools
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from pipeline.augment import AugmentConfig
from pipeline.config import DataConfig
from pipeline.feed import Feed
from pipeline.graph import encoded, graph_inputs
from pipeline.reader import ShardReader
from pipeline.resize import resize
from shard_tools.format import ShardSet
from training import environment

STAGES = ("source", "decode", "resize", "all")
NAMES = ("anchor", "shape", "geometry")


def inputs(feed: Feed, image_size: int, held: int) -> Iterator[tuple[Any, ...]]:
    """What the graph is fed, for ever."""
    reader = ShardReader(feed.split)
    alive: deque[Any] = deque(maxlen=held)  # the graph reads them without a copy
    for epoch in itertools.count():
        for planned in feed.batches(epoch, 0, image_size):
            arrays = graph_inputs(planned.params, feed.config, on_gpu=False)
            item = (encoded(reader.views(planned.sample_ids)), *(arrays[name] for name in NAMES))
            alive.append(item)
            yield item


def build(stage: str, feed: Feed, image_size: int, threads: int) -> Any:
    """The loader's graph up to a stage."""
    from nvidia.dali import Pipeline, fn, types

    source = inputs(feed, image_size, held=8)
    pipe = Pipeline(batch_size=feed.batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=2)
    with pipe:
        jpegs, anchor, shape, geometry = fn.external_source(
            source=lambda: next(source), num_outputs=4, batch=True, no_copy=True
        )
        if stage == "source":
            pipe.set_outputs(jpegs, anchor, shape, geometry)
        else:
            images = fn.decoders.image_slice(
                jpegs, anchor, shape, axes=[0, 1], output_type=types.RGB, adjust_orientation=False
            )
            if stage != "decode":
                images = resize(images, geometry, image_size, normalise=stage == "all")
            pipe.set_outputs(images)
    pipe.build()
    return pipe


def measure(pipe: Any, batch_size: int, seconds: float) -> tuple[float, float]:
    """Images/s, and CPU milliseconds an image over all threads."""
    for _ in range(8):  # what was decoded ahead while another stage was measured
        pipe.run()
    count, started, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < seconds:
        pipe.run()
        count += batch_size
    return count / elapsed, (time.process_time() - cpu) / count * 1e3


@click.command(context_settings={"show_default": True})
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A packed dataset.")
@click.option("--rows", default=4000, help="Repeat the table's rows to at least this many.")
@click.option("--image-size", default=224)
@click.option("--batch-size", default=100)
@click.option("--threads", default=2)
@click.option("--seconds", default=4.0)
@click.option("--repeats", default=5)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    data: Path, rows: int, image_size: int, batch_size: int, threads: int, seconds: float, repeats: int,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Measure, print a table, write JSON."""
    split = ShardSet.open(data).split("train")
    split = replace(split, samples=np.tile(split.samples, -(-rows // len(split))))
    feed = Feed(
        split=split,
        config=DataConfig(image_size=image_size),
        augment=AugmentConfig(),
        batch_size=batch_size,
        global_batch_size=batch_size,
    )
    pipes = {stage: build(stage, feed, image_size, threads) for stage in STAGES}
    figures: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    for _ in range(repeats):
        for stage, pipe in pipes.items():
            figures[stage].append(measure(pipe, batch_size, seconds))
    before = 0.0
    for stage, values in figures.items():
        rates, costs = zip(*values, strict=True)
        cost = statistics.median(costs)
        click.echo(
            f"{stage:<8} {statistics.median(rates):9,.0f} images/s [{min(rates):,.0f}–{max(rates):,.0f}]"
            f"   {cost:6.3f} ms CPU an image, {cost - before:+.3f}"
        )
        before = cost
    if json_file:
        settings = {
            "data": data.name, "rows": rows, "image_size": image_size, "batch_size": batch_size, "threads": threads,
            "seconds": seconds, "repeats": repeats,
        }  # fmt: skip
        result = {
            stage: {"images_per_s": [v[0] for v in values], "cpu_ms": [v[1] for v in values]}
            for stage, values in figures.items()
        }
        about = {"settings": settings, "results": result, "environment": environment.describe()}
        json_file.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
