"""Reading shards at a URL beside the same shards on a disk: images/s of the loader, cold cache and warm, in turn.

    python benchmarks/studies/remote.py --data DIR [--url URL] [--order block] [--latency-ms 20] [--fail 0.05]

Without --url the shards are served by moto's S3 server on loopback, in a process of its own, with that latency and that
share of failing requests; with it they must already be there. Prints JSON: median and range of each case, the ratio to
local reading in the same round. An epoch is timed from opening the dataset to its last batch.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SERVED = "s3://shards/set"


def serve(endpoint: Any, latency_s: float, fail: float) -> None:
    from tests.integration.s3_server import S3Server

    server = S3Server()
    endpoint.put(server.endpoint)
    while True:  # until the program that started it ends it
        server.latency_s, server.fail = latency_s, fail
        time.sleep(60)


def start_server(data: Path, latency_s: float, fail: float) -> Any:
    """A server process that has the dataset, and the environment that points to it."""
    import fsspec

    context = multiprocessing.get_context("spawn")
    endpoint = context.Queue()
    process = context.Process(target=serve, args=(endpoint, latency_s, fail), daemon=True)
    process.start()
    os.environ |= {"AWS_ENDPOINT_URL": endpoint.get(timeout=60), "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    from shards.remote import Store

    fsspec.filesystem("s3").mkdir("shards")
    store = Store(SERVED)
    for path in sorted(data.iterdir()):
        if path.is_file():
            store.upload(path, path.name)
    return process


def images_per_s(data: str, cache: Path, order: Any, cache_bytes: int) -> float:
    """One epoch of the training split, from opening the dataset to the last batch."""
    import torch

    from pipeline.augment import AugmentConfig
    from pipeline.build import threads_per_rank
    from pipeline.config import DataConfig
    from pipeline.feed import Feed
    from pipeline.loader import DaliLoader
    from shards.format import ShardSet

    config = replace(DataConfig(), order=order, cache_dir=str(cache), cache_bytes=cache_bytes)
    start = time.perf_counter()
    split = ShardSet.open(data, cache).split("train")
    size = min(100, len(split))
    feed = Feed(split=split, config=config, augment=AugmentConfig(), batch_size=size, global_batch_size=size)
    loader = DaliLoader(feed, device=torch.device("cpu"), threads=threads_per_rank(0, 1))
    num_images = sum(len(batch.sample_ids) for batch in loader.iter_epoch(0))
    elapsed = time.perf_counter() - start
    loader.close()
    return num_images / elapsed


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Packed dataset on a disk.")
@click.option("--url", default="", help="The same dataset at a URL.  [default: it is served on loopback]")
@click.option("--order", type=click.Choice(["global", "block"]), default="block", show_default=True)
@click.option("--cache-bytes", default=0, show_default=True, help="0: as much as the disk has.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--latency-ms", default=20.0, show_default=True)
@click.option("--fail", default=0.05, show_default=True, help="Share of the requests that fail.")
def main(data: Path, url: str, order: str, cache_bytes: int, repeats: int, latency_ms: float, fail: float) -> None:
    """Print images/s of local, cold and warm remote reading."""
    server = None if url else start_server(data, latency_ms / 1e3, fail)
    rates: dict[str, list[float]] = {"local": [], "cold": [], "warm": []}
    images_per_s(str(data), Path(), order, 0)  # compiles, loads DALI, reads the files once
    for _ in range(repeats):
        cache = Path(tempfile.mkdtemp(prefix="remote-"))
        rates["local"].append(images_per_s(str(data), cache, order, 0))
        rates["cold"].append(images_per_s(url or SERVED, cache, order, cache_bytes))
        rates["warm"].append(images_per_s(url or SERVED, cache, order, cache_bytes))
        shutil.rmtree(cache)
    if server:
        server.terminate()
    ratios = {
        name: [one / local for one, local in zip(rates[name], rates["local"], strict=True)] for name in ("cold", "warm")
    }

    def shown(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    click.echo(
        json.dumps(
            {
                "order": order,
                "cache_bytes": cache_bytes,
                "store": url or {"latency_ms": latency_ms, "fail": fail},
                "images_per_s": {name: shown(values) for name, values in rates.items()},
                "times_local": {name: shown(values) for name, values in ratios.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
