"""The options that the commands of `bench.py` share, and the setup from them: recipe, dataset, device and ranks."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, Unpack

import click

from penstock.model.names import check_network
from penstock.recipes import DEMO_DATA, Recipe, recipe_file
from penstock.recipes.machine import load_recipe
from penstock.shard_tools import terminal
from penstock.shards.format import ShardSet
from penstock.training.refusal import refusing

if TYPE_CHECKING:  # modules that need torch are imported when a benchmark is set up, not for --help or option errors
    from penstock.training.distributed import World

MAX_DEFAULT_BATCH = 256
TUNE_TURNS = 5  # the most turns of a trial of `tune`

Option = Callable[[Callable[..., object]], Callable[..., object]]

COMMON: list[Option] = [
    click.option("--data", metavar="DIR|URL|synthetic:WxH",
                 help="Packed dataset. synthetic:469x401 generates JPEGs as costly to decode as ImageNet's.  "
                      "[default: the recipe's, otherwise the demo images]"),
    click.option("--recipe", "recipe_name", metavar="NAME|FILE",
                 help="Recipe: a name in recipes/, or a path.  [default: rn50-90ep with --data, otherwise demo]"),
    click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                 help="Override a recipe setting. May be repeated."),
    click.option("--image-size", type=click.IntRange(min=1), metavar="S",
                 help="Image size in pixels.  [default: the recipe's]"),
    click.option("--batch-size", type=click.IntRange(min=1), metavar="B",
                 help=f"Batch size per rank.  [default: the recipe's, at most {MAX_DEFAULT_BATCH}]"),
    click.option("--threads", type=click.IntRange(min=0), metavar="N",
                 help="Decode threads. 0 uses all cores.  [default: the recipe's]"),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                 help="auto: CUDA if a GPU is available."),
    click.option("--no-machine-config", is_flag=True,
                 help="Ignore the machine.toml that `bench.py tune` wrote in this folder."),
    click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False),
                 help="Write the result to a JSON file."),
]  # fmt: skip
LOADERS = click.Choice(["dali", "reference", "synthetic"])
LOADER: list[Option] = [
    click.option("--loader", type=LOADERS, help="Loader.  [default: the recipe's; for `compute`, synthetic]"),
    click.option(
        "--against", type=LOADERS, help="Second loader, measured alternately with the first. Shows the ratio."
    ),
]
TIMING: list[Option] = [
    click.option("--seconds", type=terminal.FloatRange(min=0.1), default=5.0, metavar="T",
                 help="Length of each repeat, in seconds."),
    click.option("--repeats", type=click.IntRange(min=1), default=5, metavar="N",
                 help="Number of repeats after the warm-up."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False),
                 help="Folder for the result. The file is named after the time."),
]  # fmt: skip
COMPARE: list[Option] = [
    click.option("--compare", "earlier_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="Earlier --json file to compare with. Shows the ratio. Refused if it is from another device."),
    click.option("--force", is_flag=True, help="Allow --compare with a result from another device."),
]  # fmt: skip


def with_options(*groups: Sequence[Option]) -> Option:
    options = [option for group in groups for option in group]
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


class Common(TypedDict):
    """The values of the `COMMON` options, except --json."""

    data: str | None
    recipe_name: str | None
    overrides: tuple[str, ...]
    image_size: int | None
    batch_size: int | None
    threads: int | None
    device: Literal["auto", "cpu", "cuda"]
    no_machine_config: bool


class BenchSetup(NamedTuple):
    """The recipe, dataset and ranks of a benchmark. batch_size: per rank. settings: recorded in the result."""

    recipe: Recipe
    dataset: ShardSet
    world: "World"
    batch_size: int
    settings: dict[str, object]

    @property
    def threads(self) -> int:
        from penstock.pipeline.build import threads_per_rank

        return threads_per_rank(self.recipe.data.threads, self.world.local_world_size)


def prepare(**given: Unpack[Common]) -> BenchSetup:
    """Load the recipe with the options applied, join the other ranks, and open the dataset.

    Makes the demo's or a synthetic dataset first if it does not exist. Rank 0 prints the settings that it took from
    machine.toml.

    Raises ValueError with a one-line message if an option or the dataset is wrong.
    """
    from penstock.benchmarks import images

    data, device = given["data"], given["device"]
    with refusing():  # before anything starts
        name = given["recipe_name"] or ("rn50-90ep" if data else "demo")
        use = not given["no_machine_config"]
        recipe, of_machine = load_recipe(recipe_file(name), given["overrides"], device=device, use=use)
        check_network(recipe.model.name)
        path = data or recipe.data.path or DEMO_DATA
        if path.startswith(images.PREFIX):
            images.parse(path)
        elif path != DEMO_DATA:
            ShardSet.open(path, recipe.data.cache_dir, recipe.data.store_timeout_s)

    from penstock.pipeline.build import threads_per_rank
    from penstock.shard_tools.demo import ensure_demo
    from penstock.training import distributed, environment
    from penstock.training.data import open_dataset

    world = distributed.start(device, timeout_s=recipe.train.timeout_s)
    environment.choose_kernels()
    say: Callable[[str], None] = functools.partial(click.echo, err=True) if world.is_main else lambda line: None
    if of_machine:
        say(of_machine)
    if world.local_rank == 0 and path == DEMO_DATA:
        ensure_demo(Path(path), say)
    if path.startswith(images.PREFIX):
        path = str(images.ensure(path, say=say) if world.local_rank == 0 else images.folder_of(path))
    distributed.from_rank_0(0.0, world)  # the other ranks wait until the dataset exists
    image_size = given["image_size"] or recipe.data.image_size
    threads = recipe.data.threads if given["threads"] is None else given["threads"]
    recipe = replace(recipe, data=replace(recipe.data, path=path, image_size=image_size, threads=threads))
    batch_size = given["batch_size"] or min(recipe.train.global_batch_size, MAX_DEFAULT_BATCH)
    dataset = open_dataset(recipe)
    settings = {
        "data": path, "recipe": name, "overrides": list(given["overrides"]), "batch_size": batch_size,
        "image_size": image_size, "threads": threads_per_rank(threads, world.local_world_size),
        "device": world.device.type, "ranks": world.world_size, "machine_config": of_machine,
        "num_samples": len(dataset.split(recipe.data.train_split)),
    }  # fmt: skip
    return BenchSetup(recipe, dataset, world, batch_size, settings)
