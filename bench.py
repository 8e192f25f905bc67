"""Images per second of the loader alone, of the network alone, and of both together: `python bench.py --help`.

Every figure is the median over repeats, with the least and the most. Two loaders are compared in turn in one run
(`--against`), since a machine's speed drifts: the ratio is taken repeat by repeat.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from pipeline.batch import Batch, Loader
from pipeline.build import build_loader, threads_per_rank
from pipeline.feed import Feed
from recipes import Recipe, recipe_file
from shard_tools.demo import ensure_demo
from shard_tools.format import ShardSet, Split
from train import DEMO_DATA, build_learner, image_dtype, train_step
from training import config, distributed, environment
from training.distributed import World

WARMUP_S = 2.0
SETTLE_BATCHES = 8  # taken before each repeat is timed: what was decoded ahead while another program ran is no gain
MAX_DEFAULT_BATCH = 256
MIN_BATCHES = 200  # an epoch's length at least, so that filling the pipeline at its start is no part of the figure


class Sample(NamedTuple):
    """One repeat of one program."""

    images_per_s: float
    data_wait: float  # share of the time spent waiting for the loader, 0 to 1


def run_for(
    seconds: float, batches: Iterator[Batch], consume: Callable[[Iterator[Batch]], object], device: torch.device
) -> Sample:
    """Call `consume`, which takes batches and works on them, again and again; count the images that went by."""
    for _ in range(SETTLE_BATCHES):
        next(batches)
    num_images, wait_s = 0, 0.0

    def timed() -> Iterator[Batch]:
        nonlocal num_images, wait_s
        while True:
            before = time.perf_counter()
            batch = next(batches)
            wait_s += time.perf_counter() - before
            num_images += len(batch.labels)
            yield batch

    counted = timed()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        consume(counted)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
    return Sample(num_images / elapsed, wait_s / elapsed)


def endless(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.iter_epoch(epoch)
        epoch += 1


def repeated(split: Split, num_rows: int) -> Split:
    """The split with its table's rows repeated to at least `num_rows`: the same images, a longer epoch."""
    return replace(split, samples=np.tile(split.samples, -(-num_rows // len(split))))


def summary(samples: list[Sample]) -> dict[str, float]:
    rates = [sample.images_per_s for sample in samples]
    return {
        "images_per_s": statistics.median(rates),
        "images_per_s_min": min(rates),
        "images_per_s_max": max(rates),
        "data_wait": statistics.median(sample.data_wait for sample in samples),
    }


def benchmark(kind: str, data: str | None, recipe_name: str | None, overrides: tuple[str, ...], loader: str | None,
              against: str | None, image_size: int | None, batch_size: int | None, threads: int | None, seconds: float,
              repeats: int, device: Any, json_file: Path | None) -> None:  # fmt: skip
    """Build what is asked for, run it in turn, print and write the figures."""
    recipe_name = recipe_name or ("rn50-imagenet" if data else "demo")
    recipe = config.load_config(Recipe, recipe_file(recipe_name), overrides)
    given: dict[str, Any] = {"image_size": image_size, "threads": threads, "path": data}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = replace(recipe, data=replace(recipe.data, **({"path": DEMO_DATA} if not recipe.data.path else {}) | given))
    if recipe.data.path == DEMO_DATA:
        ensure_demo(Path(DEMO_DATA))
    world = distributed.start(device)
    if world.world_size > 1:
        raise ValueError("bench.py measures one process; start it without torchrun")
    dataset = ShardSet.open(recipe.data.path)
    batch_size = batch_size or min(recipe.train.global_batch_size, MAX_DEFAULT_BATCH)
    names = [loader or ("synthetic" if kind == "compute" else recipe.data.loader), *([against] if against else [])]
    programs = [program(kind, name, recipe, dataset, world, batch_size) for name in names]
    for _, run in programs:
        run(WARMUP_S)
    samples: list[list[Sample]] = [[] for _ in programs]
    for _ in range(repeats):
        for i, (_, run) in enumerate(programs):
            samples[i].append(run(seconds))
    for built, _ in programs:
        built.close()

    used_threads = threads_per_rank(recipe.data.threads, world.local_world_size)
    settings = {
        "kind": kind, "loader": names[0], "data": recipe.data.path, "recipe": recipe_name, "batch_size": batch_size,
        "image_size": recipe.data.image_size, "threads": used_threads, "device": world.device.type, "seconds": seconds,
        "repeats": repeats, "overrides": list(overrides),
    }  # fmt: skip
    result: dict[str, Any] = summary(samples[0]) | {"settings": settings, "env": environment.describe()}
    if kind != "loader":
        result["settings"] |= {"model": recipe.model.name, "precision": recipe.train.precision}
    click.echo(f"{kind}, {batch_size} × {recipe.data.image_size} px, {used_threads} threads, "
               f"{environment.device_name(world.device)}; median of {repeats} × {seconds:g} s")  # fmt: skip
    for name, taken in zip(names, samples, strict=True):
        show(name, summary(taken))
    if against:
        ratios = [a.images_per_s / b.images_per_s for a, b in zip(*samples, strict=True)]
        result["against"] = summary(samples[1]) | {"loader": against}
        result |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        click.echo(f"  {names[0]} / {against}: {result['ratio']:.2f} [{min(ratios):.2f}–{max(ratios):.2f}]")
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def program(
    kind: str, name: str, recipe: Recipe, dataset: ShardSet, world: World, batch_size: int
) -> tuple[Loader, Callable[[float], Sample]]:
    """A loader, and what runs it for some seconds."""
    split = dataset.split(recipe.data.train_split)
    feed = Feed(
        split=repeated(split, MIN_BATCHES * batch_size),
        config=replace(recipe.data, loader=name),  # type: ignore[arg-type]
        augment=recipe.augment,
        batch_size=batch_size,
        global_batch_size=batch_size,
        seed=recipe.train.seed,
    )
    threads = threads_per_rank(recipe.data.threads, world.local_world_size)
    loader = build_loader(feed, device=world.device, threads=threads, dtype=image_dtype(recipe, world))
    batches = endless(loader)
    if kind == "loader":
        return loader, lambda seconds: run_for(seconds, batches, next, world.device)
    learner = build_learner(recipe, len(dataset.classes), world)
    learner.net.train()
    return loader, lambda seconds: run_for(seconds, batches, lambda taken: train_step(learner, taken, 1), world.device)


def show(name: str, figures: dict[str, float]) -> None:
    low, high = figures["images_per_s_min"], figures["images_per_s_max"]
    click.echo(
        f"  {name:<10} {figures['images_per_s']:>9,.0f} images/s [{low:,.0f}–{high:,.0f}]"
        f"   waiting for data {figures['data_wait']:.1%}"
    )


LOADERS = click.Choice(["dali", "reference", "synthetic"])
OPTIONS = [
    click.option("--data", metavar="DIR", help="Packed dataset; without it the recipe's, or the demo's images."),
    click.option(
        "--recipe", "recipe_name", metavar="NAME|FILE", help="[default: rn50-imagenet with --data, else demo]"
    ),
    click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe's value."),
    click.option("--loader", type=LOADERS, help="[default: the recipe's; for compute, synthetic]"),
    click.option("--against", type=LOADERS, help="Measure a second loader in turn, and the ratio."),
    click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="Pixels. [default: the recipe's]"),
    click.option("--batch-size", type=click.IntRange(min=1), metavar="B", help="[default: the recipe's, at most 256]"),
    click.option("--threads", type=click.IntRange(min=0), metavar="N", help="Decode threads; 0 for all cores."),
    click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, metavar="T", help="Length of a repeat."),
    click.option("--repeats", type=click.IntRange(min=1), default=5, metavar="N", help="Repeats, after a warm-up."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if any."),
    click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures."),
]
KINDS = {
    "loader": "Batches delivered and thrown away: what the data pipeline alone can do.",
    "compute": "Training steps on one batch that is already there: what the network alone can do.",
    "train": "Training steps on real batches, end to end, and the share of the time spent waiting for data.",
}


@click.group(context_settings={"show_default": True, "max_content_width": 110})
def main() -> None:
    """Measure images/s, and what limits it: where `train` is near `compute` the network does, near `loader` the data.

    \b
    python bench.py loader --data DIR --image-size 224 --batch-size 100 --threads 2
    python bench.py loader --data DIR --recipe rn50-imagenet --loader dali --against reference
    python bench.py train  --data DIR --recipe rn50-imagenet --device cuda --json result.json
    """


def add_command(kind: str, text: str) -> None:
    def command(**options: Any) -> None:
        try:
            benchmark(kind, **options)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror or error}") from None
        finally:
            distributed.finish()

    for option in reversed(OPTIONS):
        command = option(command)
    main.command(kind, help=text)(command)


for _kind, _text in KINDS.items():
    add_command(_kind, _text)


if __name__ == "__main__":
    main()
