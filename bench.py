"""Images per second of the loader alone, of the network alone, and of both together: `python bench.py --help`.

`parity` compares the loader's images with PIL's and torchvision's, `tune` searches the fastest settings.

Every figure is the median over repeats, with the least and the most. Two loaders are compared in turn in one run
(`--against`), since a machine's speed drifts: the ratio is taken repeat by repeat.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from benchmarks import parity as parity_benchmark
from benchmarks import tune as tune_benchmark
from benchmarks.programs import Sample, program, summary
from engine.loaders import open_dataset
from pipeline.build import threads_per_rank
from recipes import Recipe, recipe_file
from shard_tools.demo import ensure_demo
from shard_tools.format import ShardSet
from train import DEMO_DATA
from training import config, distributed, environment
from training.distributed import World

WARMUP_S = 2.0
MAX_DEFAULT_BATCH = 256


def benchmark(kind: str, data: str | None, recipe_name: str | None, overrides: tuple[str, ...], loader: str | None,
              against: str | None, image_size: int | None, batch_size: int | None, threads: int | None, seconds: float,
              repeats: int, device: Any, json_file: Path | None) -> None:  # fmt: skip
    """Build what is asked for, run it in turn, print and write the figures."""
    recipe, dataset, world = opened(data, recipe_name, overrides, device, image_size=image_size, threads=threads)
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
        "kind": kind, "loader": names[0], "data": recipe.data.path, "recipe": named(recipe_name, data),
        "batch_size": batch_size, "image_size": recipe.data.image_size, "threads": used_threads,
        "device": world.device.type, "seconds": seconds, "repeats": repeats, "overrides": list(overrides),
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
        write_json(json_file, result)


def named(recipe_name: str | None, data: str | None) -> str:
    return recipe_name or ("rn50-90ep" if data else "demo")


def opened(
    data: str | None, recipe_name: str | None, overrides: tuple[str, ...], device: Any, **given: Any
) -> tuple[Recipe, ShardSet, World]:
    """The recipe with what was `given` of `[data]`, its dataset, and where to run."""
    recipe = config.load_config(Recipe, recipe_file(named(recipe_name, data)), overrides)
    given = {name: value for name, value in given.items() if value is not None}
    recipe = replace(recipe, data=replace(recipe.data, path=data or recipe.data.path or DEMO_DATA, **given))
    if recipe.data.path == DEMO_DATA:
        ensure_demo(Path(DEMO_DATA))
    world = distributed.start(device)
    if world.world_size > 1:
        raise ValueError("bench.py measures one process; start it without torchrun")
    return recipe, open_dataset(recipe), world


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show(name: str, figures: dict[str, float]) -> None:
    low, high = figures["images_per_s_min"], figures["images_per_s_max"]
    click.echo(
        f"  {name:<10} {figures['images_per_s']:>9,.0f} images/s [{low:,.0f}–{high:,.0f}]"
        f"   waiting for data {figures['data_wait']:.1%}"
    )


LOADERS = click.Choice(["dali", "reference", "synthetic"])
THREADS = click.option("--threads", type=click.IntRange(min=0), metavar="N", help="Decode threads; 0 for all cores.")
BATCH_SIZE = click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="B", help="[default: the recipe's, at most 256]"
)
COMMON = [
    click.option("--data", metavar="DIR", help="Packed dataset; without it the recipe's, or the demo's images."),
    click.option("--recipe", "recipe_name", metavar="NAME|FILE", help="[default: rn50-90ep with --data, else demo]"),
    click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe's value."),
    click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="Pixels. [default: the recipe's]"),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if any."),
]
RATES = [
    click.option("--loader", type=LOADERS, help="[default: the recipe's; for compute, synthetic]"),
    click.option("--against", type=LOADERS, help="Measure a second loader in turn, and the ratio."),
    BATCH_SIZE,
    THREADS,
    click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, metavar="T", help="Length of a repeat."),
    click.option("--repeats", type=click.IntRange(min=1), default=5, metavar="N", help="Repeats, after a warm-up."),
    click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures."),
]
KINDS = {
    "loader": "Batches delivered and thrown away: what the data pipeline alone can do.",
    "compute": "Training steps on one batch that is already there: what the network alone can do.",
    "train": "Training steps on real batches, end to end, and the share of the time spent waiting for data.",
}


class Commands(click.Group):
    """A group whose commands tell users what is wrong in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror or error}") from None
        finally:
            distributed.finish()


@click.group(cls=Commands, context_settings={"show_default": True, "max_content_width": 110})
def main() -> None:
    """Measure images/s, and what limits it: where `train` is near `compute` the network does, near `loader` the data.

    \b
    python bench.py loader --data DIR --image-size 224 --batch-size 100 --threads 2
    python bench.py loader --data DIR --recipe rn50-90ep --loader dali --against reference
    python bench.py train  --data DIR --recipe rn50-90ep --device cuda --json result.json
    python bench.py parity --data DIR --recipe rn50-90ep --out parity
    python bench.py tune   --data DIR --recipe rn50-90ep --seconds 300 --out machine.toml
    """


def with_options(options: list[Any]) -> Callable[[Any], Any]:
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


for _kind, _text in KINDS.items():
    main.command(_kind, help=_text)(with_options(COMMON + RATES)(functools.partial(benchmark, _kind)))


@main.command()
@with_options(COMMON)
@THREADS
@click.option("--num", "num_images", type=click.IntRange(min=1), default=500, metavar="N", help="Images a split.")
@click.option("--steps", type=click.IntRange(min=0), default=30, help="Training steps of the network that judges.")
@click.option("--checkpoint", "checkpoint_file", type=click.Path(path_type=Path), help="Its network judges instead.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="runs/parity", help="Report's folder.")
def parity(num_images: int, steps: int, checkpoint_file: Path | None, out: Path, **common: Any) -> None:
    """The loader's images against PIL's and torchvision's, same plan: differences in grey levels, and top-1 agreement.

    On a GPU also the GPU's images against the CPU's. Writes parity.json and, for each line of the table, a picture of
    the worst image: ours, theirs, and eight times the difference.
    """
    recipe, dataset, world = opened(**common)
    differences, verdicts = parity_benchmark.measure(
        recipe,
        dataset,
        world.device,
        num_images=num_images,
        steps=steps,
        threads=threads_per_rank(recipe.data.threads, world.local_world_size),
        checkpoint_file=checkpoint_file,
        out=out,
    )
    click.echo(f"grey levels of 255, {recipe.data.path}, {environment.device_name(world.device)}")
    click.echo(parity_benchmark.table(differences, verdicts))
    settings = {"data": recipe.data.path, "recipe": config.to_toml(recipe), "steps": steps}
    settings["checkpoint"] = str(checkpoint_file) if checkpoint_file else None
    content = {"differences": list(map(asdict, differences)), "top1": list(map(asdict, verdicts))}
    write_json(out / "parity.json", content | {"settings": settings, "env": environment.describe()})
    click.echo(f"  report     {out / 'parity.json'}")


@main.command()
@with_options(COMMON)
@BATCH_SIZE
@click.option("--seconds", type=click.FloatRange(min=1), default=180.0, metavar="T", help="Time for the search.")
@click.option("--turn", type=click.FloatRange(min=0.1), default=1.0, metavar="T", help="Seconds of one measurement.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="machine.toml", help="What to write.")
def tune(batch_size: int | None, seconds: float, turn: float, out: Path, **common: Any) -> None:
    """Search decode threads, prefetch, read_ahead and, on a GPU, hw_decoder_load for this machine; write TOML."""
    recipe, dataset, world = opened(**common)
    batch_size = batch_size or min(recipe.train.global_batch_size, MAX_DEFAULT_BATCH)
    deadline = time.monotonic() + seconds
    num_cores = threads_per_rank(0, 1)
    ladders = tune_benchmark.ladders(num_cores, world.device.type == "cuda")
    start = {name: getattr(recipe.data, name) for name in ladders}
    start["threads"] = threads_per_rank(recipe.data.threads, 1)

    def versus(ours: dict[str, Any], theirs: dict[str, Any], turns: int) -> list[tuple[float, float]]:
        """Both warmed up, then measured in turn."""
        changed = [replace(recipe, data=replace(recipe.data, **settings)) for settings in (ours, theirs)]
        built = [program("loader", "dali", one, dataset, world, batch_size) for one in changed]
        with closing(built[0][0]), closing(built[1][0]):
            for _, run in built:
                run(turn / 2)
            rates = [tuple(run(turn).images_per_s for _, run in built) for _ in range(turns)]
        return [(a, b) for a, b in rates]

    def report(trial: tune_benchmark.Trial) -> None:
        click.echo(
            f"  {trial.setting} = {trial.value:<5} {trial.images_per_s:>9,.0f} images/s   "
            f"{trial.ratio:.3f} times the incumbent{', taken' if trial.accepted else ''}"
        )

    click.echo(f"starting from {tune_benchmark.options(start)}, batches of {batch_size}")
    found = tune_benchmark.search(start, ladders, versus, lambda: time.monotonic() < deadline, report)
    about = {
        "machine": f"{environment.device_name(world.device)}, 1 rank; measured {time.strftime('%Y-%m-%d')}",
        "data": f"{recipe.data.path}, {batch_size} × {recipe.data.image_size} px",
        "packages": ", ".join(f"{name} {version}" for name, version in environment.describe()["packages"].items()),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(tune_benchmark.to_toml(found, about), encoding="utf-8")
    ended = "" if found.finished else " (time was up before the search ended; --seconds gives it more)"
    click.echo(f"wrote {out}{ended}; use it with: {tune_benchmark.options(found.settings)}")


if __name__ == "__main__":
    main()
