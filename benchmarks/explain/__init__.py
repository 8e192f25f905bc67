"""`bench.py explain`: find the stage that limits training, the headroom of the others, and what to change.

`stages` (with `reading`) times each stage alone. `model` predicts how they run together and lists possible changes.
`report` prints the findings.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.benchmarks import record
from penstock.benchmarks.options import COMMON, prepare, with_options
from penstock.benchmarks.text import wrapped
from penstock.recipes import config
from penstock.shard_tools import terminal

if TYPE_CHECKING:  # modules that need torch are imported when the command runs
    from penstock.benchmarks.explain.model import Change, Model
    from penstock.benchmarks.explain.stages import Timings
    from penstock.benchmarks.measure import Ratio

TIMING = [
    click.option("--seconds", type=terminal.FloatRange(min=0.1), default=2.0, metavar="T",
                 help="Length of each repeat, in seconds."),
    click.option("--repeats", type=click.IntRange(min=1), default=3, metavar="N",
                 help="Number of repeats after the warm-up."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False),
                 help="Folder for the result (JSON) and a picture of the stages."),
    click.option("--apply", "apply_too", is_flag=True,
                 help="Also train with the first suggested change that is a recipe setting, and compare the measured "
                      "gain with the expected one."),
]  # fmt: skip


@click.command(name="explain")
@with_options(COMMON, TIMING)
def command(
    seconds: float, repeats: int, out: Path | None, apply_too: bool, json_file: Path | None, **common: Any
) -> None:  # fmt: skip
    """Find the stage that limits training.

    Names the bottleneck and the two changes most worth trying. Times each stage alone: reading, decoding, resizing,
    copying to the GPU, computing and communication. The stages alternate with the whole loader and with training.
    Always uses DALI's loader.
    """
    record.require_writable(json_file, out)
    setup = prepare(**common)

    from penstock.benchmarks import noise, plot
    from penstock.benchmarks.explain import arithmetic, report, stages
    from penstock.benchmarks.explain import model as models

    with noise.watched() as warnings:
        timings = stages.measure(setup, seconds, repeats)
        model = models.model_of(timings, setup)

        def gain_of(change: "Change", stage: str) -> "Ratio":
            return stages.compare(stage, models.applied(setup, change), setup, timings.batches, seconds, repeats)

        found = models.candidates(model, setup, timings.fits)
        changes = models.best(model, found, lambda change: gain_of(change, model.bottleneck).median)
        flops = arithmetic.training_flops(setup), arithmetic.peak_flops_per_s(setup)
        if setup.world.is_main:
            click.echo("\n".join(report.text(timings, model, changes, setup, flops)))
        tried = next((pair for pair in changes if pair[0].settings), None) if apply_too else None
        seen = gain_of(tried[0], "train") if tried else None
    if not setup.world.is_main:
        return
    if tried and seen:
        click.echo(report.applied(*tried, seen))
    elif apply_too:
        click.echo("--apply: nothing to apply, since no suggested change is a recipe setting")
    warnings += noise.spread_warnings(timings.rates())
    for line in warnings:
        click.echo("\n".join(wrapped(f"  warning: {line}")), err=True)
    recipe, more = setup.recipe, {name: {"cpu_s": cost} for name, cost in timings.cpu_s.items()}
    settings = setup.settings | {"seconds": seconds, "repeats": repeats, "model": recipe.model.name}
    settings["precision"] = models.precision_of(setup)
    result = record.build("explain", settings, timings.samples, {}, warnings, more)
    applied = {"options": [tried[0].option], "expected": tried[1], "seen": seen._asdict()} if tried and seen else None
    explained = figures(timings, model, changes) | {"applied": applied, "recipe": config.to_toml(recipe)}
    explained |= {"flops_per_image": flops[0], "peak_flops_per_s": flops[1]}
    result = replace(result, more={"explain": explained})
    record.keep(result, json_file, out)
    if out:
        click.echo(f"  picture: {plot.draw(plot.bars(result, out.name), out)}")


def figures(timings: "Timings", model: "Model", changes: "list[tuple[Change, float]]") -> dict[str, object]:
    """Return the findings for the JSON result. Costs are in seconds per image, predictions in images/s."""
    from penstock.benchmarks.explain.model import LOADING

    return {
        "bottleneck": model.bottleneck,
        "headroom": model.headroom(),
        "costs": {stage: cost._asdict() for stage, cost in model.costs.items()},
        "predicted": {"loader": model.rate(LOADING), "train": model.rate()},
        "split_fits_in_memory": timings.fits,
        "advice": [asdict(change) | {"expected": gain} for change, gain in changes],
    }
