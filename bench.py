"""Measure images per second and find what limits them: `python bench.py --help`; docs/benchmarking.md has the method.

This file defines the commands. Their work is in `benchmarks/`. It runs under `python` and `torchrun`.
"""

import sys
import time
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, Unpack

import click

from penstock.benchmarks.options import COMMON, COMPARE, LOADER, TIMING, TUNE_TURNS, Common, prepare, with_options
from penstock.commands.command_line import Group
from penstock.recipes import config
from penstock.recipes.machine import FILE, this_machine
from penstock.shard_tools import terminal

# Modules that need torch are imported when a command runs, so --help and a misspelt option answer without it.
if TYPE_CHECKING:
    from penstock.benchmarks.programs import Kind
    from penstock.benchmarks.tune import Trial

LAZY = {  # commands in modules of their own, each named `command` there; imported when called
    "docs": "penstock.benchmarks.docs",
    "env": "penstock.benchmarks.env",
    "explain": "penstock.benchmarks.explain",
    "peers": "penstock.benchmarks.peers",
    "plot": "penstock.benchmarks.plot",
    "record": "penstock.benchmarks.runs",
}


class Commands(Group):
    """A group that reports an error in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *LAZY]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in LAZY:
            return super().get_command(ctx, name)
        command: click.Command = import_module(LAZY[name]).command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror or error}") from None
        finally:
            if sys.modules.get("torch"):
                from penstock.training import distributed

                distributed.finish()


@click.group(cls=Commands, context_settings={"show_default": True, "max_content_width": 110})
def main() -> None:
    """Measure images/s, and find what limits training.

    If `train` is near `compute`, the network is the limit. If `train` is near `loader`, the data is. `explain` times
    each stage and names the bottleneck.

    \b
    python bench.py loader --data DIR --recipe rn50-90ep --loader dali --against reference
    python bench.py train  --data synthetic:469x401 --recipe rn50-90ep --device cuda --json result.json
    torchrun --nproc-per-node 8 bench.py train --data DIR --recipe rn50-90ep
    python bench.py parity --data DIR --recipe rn50-90ep --out parity
    python bench.py tune   --data DIR --recipe rn50-90ep --seconds 300
    """


class Timed(Common):
    """The options of the timed commands. json_file and out: where to keep the result."""

    loader: NotRequired[str | None]
    against: NotRequired[str | None]
    seconds: float
    repeats: int
    earlier_file: Path | None
    force: bool
    json_file: Path | None
    out: Path | None


def time_programs(
    kind: "Kind | Literal['h2d']", seconds: float, repeats: int, earlier_file: Path | None, force: bool,
    json_file: Path | None, out: Path | None, loader: str | None = None, against: str | None = None,
    **common: Unpack[Common],
) -> None:  # fmt: skip
    """Time programs of one kind, print the result, and keep it where the options say."""
    from penstock.benchmarks import earlier, record

    record.require_writable(json_file, out)
    before = earlier.read(earlier_file, force) if earlier_file else None  # refuse it before anything is measured
    if kind == "h2d":
        from penstock.benchmarks.throughput import require_gpu

        require_gpu(common["device"])
    setup = prepare(**common)

    from penstock.benchmarks import throughput

    settings: dict[str, object] = {}
    if kind == "h2d":
        built = throughput.build_copies(setup)
    else:
        loader = loader or ("synthetic" if kind == "compute" else setup.recipe.data.loader)
        if against == loader:
            raise ValueError(f"--against {against}: this loader is measured already. Name another one.")
        built = throughput.build(kind, [loader, *([against] if against else [])], setup)
        settings["loader"] = loader
        if kind != "loader":
            settings |= {"model": setup.recipe.model.name, "precision": setup.recipe.train.precision}
    result = throughput.time_programs(kind, built, setup, seconds, repeats, settings)
    if before and earlier_file:
        result = earlier.compared(result, before, earlier_file)
    if setup.world.is_main:
        throughput.show(result, setup)
        record.keep(result, json_file, out)


@main.command()
@with_options(COMMON, LOADER, TIMING, COMPARE)
def loader(**given: Unpack[Timed]) -> None:
    """Time the data pipeline alone.

    Batches are loaded and thrown away, without training.
    """
    time_programs("loader", **given)


@main.command()
@with_options(COMMON, LOADER, TIMING, COMPARE)
def compute(**given: Unpack[Timed]) -> None:
    """Time the network alone.

    Training steps run on one batch in memory, without loading.
    """
    time_programs("compute", **given)


@main.command()
@with_options(COMMON, LOADER, TIMING, COMPARE)
def train(**given: Unpack[Timed]) -> None:
    """Time training end to end.

    Training steps run on loaded batches. Also shows the share of time spent waiting for data.
    """
    time_programs("train", **given)


@main.command()
@with_options(COMMON, TIMING, COMPARE)
def h2d(**given: Unpack[Timed]) -> None:
    """Time copies of a batch from the CPU to the GPU.

    Copies from pinned and from pageable memory, in images/s and GB/s.
    """
    time_programs("h2d", **given)


@main.command()
@with_options(COMMON)
@click.option("--num", "num_images", type=click.IntRange(min=1), default=500, metavar="N", help="Images per split.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="runs/parity", help="Report folder.")
def parity(num_images: int, out: Path, json_file: Path | None, **common: Unpack[Common]) -> None:
    """Compare the loader's pixels with PIL's and torchvision's.

    Both load the same images with the same augmentation. Differences are in grey levels. With a GPU, images made on the
    GPU are compared too. Nothing is timed. Writes parity.json (or the --json file) and, for each line of the table, a
    picture of the worst image: ours, theirs, and eight times the difference.
    """
    from penstock.benchmarks import record

    record.require_writable(json_file, out)
    setup = prepare(**common)
    if setup.world.world_size > 1:
        raise ValueError("parity compares images in one process. Start it without torchrun.")

    from penstock.benchmarks.parity import compare_all, table

    differences = compare_all(setup, num_images, common["batch_size"], out)
    click.echo(f"{setup.recipe.data.path}: DALI's images compared with PIL's and torchvision's, in grey levels (0–255)")
    click.echo("\n".join(table(differences)))
    settings = setup.settings | {"recipe": config.to_toml(setup.recipe), "num_images": num_images}
    result = record.build("parity", settings, {}, {}, [])
    record.write(
        json_file or out / "parity.json", replace(result, more={"differences": list(map(asdict, differences))})
    )
    click.echo(f"  report     {json_file or out / 'parity.json'}")


@main.command("tune")
@with_options(COMMON)
@click.option("--seconds", type=terminal.FloatRange(min=1), default=180.0, metavar="T", help="Seconds for the search.")
@click.option("--turn", type=terminal.FloatRange(min=0.1), default=1.0, metavar="T", help="Seconds per measurement.")
@click.option("--repeats", type=click.IntRange(min=1), default=TUNE_TURNS, metavar="N",
              help="Maximum number of measurements of each candidate.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=str(FILE), help="File to write.")
def tune_command(
    seconds: float, turn: float, repeats: int, out: Path, json_file: Path | None, **common: Unpack[Common]
) -> None:
    """Find this machine's fastest loader settings.

    Writes machine.toml, which train.py reads. Searches decode threads, prefetch, read_ahead and, on a GPU,
    hw_decoder_load. Then tries decoded images in memory and other batch sizes. Those are only reported, since the
    recipe sets them. Under torchrun all ranks search together.
    """
    started = time.monotonic()
    from penstock.benchmarks import record

    record.require_writable(out, json_file)
    setup = prepare(**common)

    from penstock.benchmarks import noise, tune
    from penstock.benchmarks.text import shown_rate, wrapped
    from penstock.training import environment

    def say(line: str, err: bool = False) -> None:
        if setup.world.is_main:
            click.echo(line, err=err)

    def report(trial: "Trial") -> None:
        say(
            f"  {trial.setting} = {trial.value:<5} {shown_rate(trial.images_per_s):>9} images/s   "
            f"{trial.ratio:.3f} times the best so far in {trial.turns} turn(s){tune.outcome(trial)}"
        )

    data = f"{setup.recipe.data.path}, batch size {setup.batch_size} at {setup.recipe.data.image_size} px"
    say(f"{data}, {setup.threads} threads")
    with noise.watched() as warnings:
        found, batches = tune.search_machine(setup, seconds - time.monotonic() + started, turn, repeats, report)
    if not setup.world.is_main:
        return
    packages = ", ".join(f"{name} {version}" for name, version in environment.describe()["packages"].items())
    about = {"measured": time.strftime("%Y-%m-%d"), "data": data, "packages": packages}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(tune.to_toml(found, this_machine(setup.world.device.type), about), encoding="utf-8")
    if json_file:
        settings = setup.settings | {"seconds": seconds, "turn": turn, "repeats": repeats}
        trials = [asdict(trial) for trial in (*found.trials, *batches.trials)]
        more = {"found": found.settings, "finished": found.finished, "trials": trials}
        record.write(json_file, replace(record.build("tune", settings, {}, {}, warnings), more=more))
    for line in warnings:
        say("\n".join(wrapped(f"  warning: {line}")), err=True)
    ended = "" if found.finished else " (the search ran out of time; give it more with --seconds)"
    wrote = wrapped(f"wrote {out}{ended}. The same settings as options:")
    for line in filter(None, (tune.pixels_advice(setup, batches), tune.batch_advice(batches, setup.batch_size))):
        say("\n".join(wrapped(line)))
    say("\n".join([*wrote, f"  {tune.options(found.settings)}"]))


if __name__ == "__main__":
    main()
