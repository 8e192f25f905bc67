"""Images per second, and what limits them: `python bench.py --help`; docs/benchmarking.md has the method.

This file has the commands; what they do is in `benchmarks/`. It runs under `python` and `torchrun`.
"""

import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.options import COMMON, LOADERS, TIMING, TUNE_TURNS, opened, with_options
from commands.command_line import Group
from recipes import config
from recipes.machine import FILE, this_machine

# What takes torch is imported when a command runs: --help and a misspelt option need none.
if TYPE_CHECKING:
    from benchmarks.programs import Kind
    from benchmarks.tune import Trial

LAZY = {  # commands in modules of their own, imported when one is called: `command` there
    "explain": "benchmarks.explain",
    "peers": "benchmarks.peers",
    "plot": "benchmarks.plot",
}


class Commands(Group):
    """A group whose commands tell users what is wrong in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *LAZY]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in LAZY:
            return super().get_command(ctx, name)
        command: click.Command = import_module(LAZY[name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror or error}") from None
        finally:
            if "torch" in sys.modules:
                from training import distributed

                distributed.finish()


@click.group(cls=Commands, context_settings={"show_default": True, "max_content_width": 110})
def main() -> None:
    """Measure images/s, and what limits it: where `train` is near `compute` the network does, near `loader` the data.

    \b
    python bench.py loader --data DIR --image-size 224 --batch-size 100 --threads 2
    python bench.py loader --data DIR --recipe rn50-90ep --loader dali --against reference
    python bench.py train  --data synthetic:469x401 --recipe rn50-90ep --device cuda --json result.json
    torchrun --nproc-per-node 8 bench.py train --data DIR --recipe rn50-90ep
    python bench.py parity --data DIR --recipe rn50-90ep --out parity
    python bench.py tune   --data DIR --recipe rn50-90ep --seconds 300
    """


COMPARE = [
    click.option("--compare", "earlier_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="An earlier --json: print the ratio to it; refused where it is of another device."),
    click.option("--force", is_flag=True, help="Compare with a result of another device too."),
]  # fmt: skip
LOADER = [
    click.option("--loader", type=LOADERS, help="[default: the recipe's; for compute, synthetic]"),
    click.option("--against", type=LOADERS, help="Measure a second loader in turn, and the ratio."),
]


def compare_first(earlier_file: Path | None, force: bool) -> dict[str, Any] | None:
    """The earlier result, refused before anything is measured."""
    if earlier_file is None:
        return None
    from benchmarks import record
    from training import environment

    earlier = record.read(earlier_file)
    record.same_device({"env": environment.describe()}, earlier, force)
    return earlier


def finish(
    result: dict[str, Any], on: Any, earlier_file: Path | None, earlier: dict[str, Any] | None, json_file: Path | None,
    out: Path | None,
) -> None:  # fmt: skip
    """Print the result and write it, once."""
    from benchmarks import rates

    if earlier_file is not None and earlier is not None:
        result["warnings"] += rates.compared(result, earlier_file, earlier)
    if on.world.is_main:
        rates.show(result, on)
        rates.keep(result, json_file, out)


def measure(
    kind: "Kind", loader: str | None, against: str | None, seconds: float, repeats: int, earlier_file: Path | None,
    force: bool, json_file: Path | None, out: Path | None, **common: Any,
) -> None:  # fmt: skip
    from benchmarks import record

    record.require_writable(json_file, out)
    earlier = compare_first(earlier_file, force)
    on = opened(**common)

    from benchmarks import rates

    loader = loader or ("synthetic" if kind == "compute" else on.recipe.data.loader)
    if against == loader:
        raise ValueError(f"--against {against}: is what is measured already; name another loader")
    names = [loader, *([against] if against else [])]
    more = {"loader": loader}
    if kind != "loader":
        more |= {"model": on.recipe.model.name, "precision": on.recipe.train.precision}
    result = rates.measure_rates(kind, rates.on_ranks(kind, names, on), on, seconds, repeats, more)
    finish(result, on, earlier_file, earlier, json_file, out)


@main.command()
@with_options(COMMON, LOADER, TIMING, COMPARE)
def loader(**given: Any) -> None:
    """Batches delivered and thrown away: what the data pipeline alone can do."""
    measure("loader", **given)


@main.command()
@with_options(COMMON, LOADER, TIMING, COMPARE)
def compute(**given: Any) -> None:
    """Training steps on one batch that is already there: what the network alone can do."""
    measure("compute", **given)


@main.command()
@with_options(COMMON, LOADER, TIMING, COMPARE)
def train(**given: Any) -> None:
    """Training steps on real batches, end to end, and the share of the time spent waiting for data."""
    measure("train", **given)


@main.command()
@with_options(COMMON, TIMING, COMPARE)
def h2d(
    seconds: float, repeats: int, earlier_file: Path | None, force: bool, json_file: Path | None, out: Path | None,
    **common: Any,
) -> None:  # fmt: skip
    """Copies of a batch from the CPU to the GPU, from pinned and from pageable memory: images/s and GB/s."""
    from benchmarks import programs, rates, record
    from benchmarks.ranks import Together

    programs.require_gpu(common["device"])
    record.require_writable(json_file, out)
    earlier = compare_first(earlier_file, force)
    on = opened(**common)
    copies = programs.build_copies(on.recipe, on.dataset, on.world, on.batch_size)
    built = copies if on.world.world_size == 1 else [Together(program, on.world) for program in copies]
    result = rates.measure_rates("h2d", built, on, seconds, repeats, {})
    rates.add_bytes(result, programs.image_bytes(on.recipe, on.world))
    finish(result, on, earlier_file, earlier, json_file, out)


@main.command()
@with_options(COMMON)
@click.option("--num", "num_images", type=click.IntRange(min=1), default=500, metavar="N", help="Images a split.")
@click.option("--steps", type=click.IntRange(min=0), default=30, help="Training steps of the network that judges.")
@click.option("--checkpoint", "checkpoint_file", type=click.Path(path_type=Path), help="Its network judges instead.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="runs/parity", help="Report's folder.")
def parity(
    num_images: int, steps: int, checkpoint_file: Path | None, out: Path, json_file: Path | None, **common: Any
) -> None:
    """The loader's images against PIL's and torchvision's, same plan: differences in grey levels, and top-1 agreement.

    On a GPU also the GPU's images against the CPU's. Nothing is timed. Writes parity.json (or --json) and, for each
    line of the table, a picture of the worst image: ours, theirs, and eight times the difference.
    """
    from benchmarks import record

    record.require_writable(json_file, out)
    on = opened(**common)

    from benchmarks.parity import measure as compare
    from benchmarks.parity import table
    from training import environment

    if on.world.world_size > 1:
        raise ValueError("parity compares images in one process; start it without torchrun")
    differences, verdicts = compare(
        on.recipe,
        on.dataset,
        on.world.device,
        num_images=num_images,
        steps=steps,
        threads=on.threads,
        batch_size=common["batch_size"],
        checkpoint_file=checkpoint_file,
        out=out,
    )
    click.echo(f"grey levels of 255, {on.recipe.data.path}, {environment.device_name(on.world.device)}")
    click.echo(table(differences, verdicts))
    settings = on.settings | {"recipe": config.to_toml(on.recipe), "steps": steps, "num_images": num_images}
    settings["checkpoint"] = str(checkpoint_file) if checkpoint_file else None
    found = {"differences": list(map(asdict, differences)), "top1": list(map(asdict, verdicts))}
    file = json_file or out / "parity.json"
    record.write(file, record.build("parity", settings, {}, {}, []) | found)
    click.echo(f"  report     {file}")


@main.command("tune")
@with_options(COMMON)
@click.option("--seconds", type=click.FloatRange(min=1), default=180.0, metavar="T", help="Time for the search.")
@click.option("--turn", type=click.FloatRange(min=0.1), default=1.0, metavar="T", help="Seconds of one measurement.")
@click.option("--repeats", type=click.IntRange(min=1), default=TUNE_TURNS, help="Turns of a trial, at most.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=str(FILE), help="What to write.")
def tune_command(seconds: float, turn: float, repeats: int, out: Path, json_file: Path | None, **common: Any) -> None:
    """Search the loader's fastest settings on this machine, and write machine.toml, which train.py takes.

    Decode threads, prefetch, read_ahead and, on a GPU, hw_decoder_load; then batch sizes, which are only told: the
    batch size is the recipe's. Under torchrun all ranks search together.
    """
    started = time.monotonic()
    from benchmarks import record

    record.require_writable(out, json_file)
    on = opened(**common)

    from benchmarks import noise, tune
    from benchmarks.text import shown_rate, wrapped
    from training import environment

    def say(line: str, **to: Any) -> None:
        if on.world.is_main:
            click.echo(line, **to)

    def report(trial: "Trial") -> None:
        say(
            f"  {trial.setting} = {trial.value:<5} {shown_rate(trial.images_per_s):>9} images/s   "
            f"{trial.ratio:.3f} times the incumbent in {trial.turns} turn(s){tune.outcome(trial)}"
        )

    say(f"batches of {on.batch_size} × {on.recipe.data.image_size} px from {on.recipe.data.path}, {on.threads} threads")
    with noise.watched(on.world.device) as warnings:
        left = seconds - (time.monotonic() - started)
        found, batches = tune.search_machine(on, left, turn, repeats, report)
    machine = this_machine(on.world.device.type)
    advice = tune.batch_advice(batches, on.batch_size)
    about = {
        "measured": time.strftime("%Y-%m-%d"),
        "data": f"{on.recipe.data.path}, {on.batch_size} × {on.recipe.data.image_size} px",
        "packages": ", ".join(f"{name} {version}" for name, version in environment.describe()["packages"].items()),
    }
    if not on.world.is_main:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(tune.to_toml(found, machine, about), encoding="utf-8")
    if json_file:
        settings = on.settings | {"seconds": seconds, "turn": turn, "repeats": repeats}
        trials = [asdict(trial) for trial in (*found.trials, *batches.trials)]
        more = {"found": found.settings, "finished": found.finished, "trials": trials}
        record.write(json_file, record.build("tune", settings, {}, {}, warnings) | more)
    for line in warnings:
        say("\n".join(wrapped(f"  warning: {line}")), err=True)
    ended = "" if found.finished else " (time was up before the search ended; --seconds gives it more)"
    say("\n".join([*wrapped(advice), *wrapped(f"wrote {out}{ended}; elsewhere use:")]))
    say(f"  {tune.options(found.settings)}")


if __name__ == "__main__":
    main()
