"""`bench.py explain`: which stage limits training, how far the others are from it, and what to change.

`stages` has the programs, `measuring` runs them, `model` joins them, `network` and `limits` know what is possible at
all, `advice` what could be changed, `report` shows it.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import record
from benchmarks.measure import Ratio
from benchmarks.options import COMMON, Setup, prepare, with_options
from benchmarks.text import wrapped
from recipes import config

if TYPE_CHECKING:  # what takes torch is imported when the command runs
    from benchmarks.explain.measuring import Change, Findings

TIMING = [
    click.option("--seconds", type=click.FloatRange(min=0.1), default=2.0, metavar="T", help="Length of a repeat."),
    click.option("--repeats", type=click.IntRange(min=1), default=3, metavar="N", help="Repeats, after a warm-up."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for chart and result."),
    click.option("--apply", "apply_too", is_flag=True,
                 help="Then train with those changes that a recipe can make: the gain seen beside the expected."),
]  # fmt: skip


@click.command(name="explain")
@with_options(COMMON, TIMING)
def command(
    seconds: float, repeats: int, out: Path | None, apply_too: bool, json_file: Path | None, **common: Any
) -> None:  # fmt: skip
    """Which stage limits training, how much faster the others are, and the two settings most worth changing.

    Reading, decoding, resizing, copying to the GPU, computing and communication run each alone, in turn with the
    loader and with training, which always take DALI's loader. Limits of the machine and of the network stand beside.
    """
    record.require_writable(json_file, out)
    on = prepare(**common)

    from benchmarks import noise
    from benchmarks.explain import measuring, report

    done = None
    with noise.watched() as warnings:
        findings = measuring.measure(on, seconds, repeats)
        if on.world.is_main:
            click.echo("\n".join(report.text(findings, on)))
        if apply_too:
            done = measuring.apply(on, findings, seconds, repeats)
    if not on.world.is_main:
        return
    if apply_too:
        click.echo(report.applied(*done) if done else "--apply: none of these is a setting of the recipe alone")
    rates = {name: [one.images_per_s for one in taken] for name, taken in findings.samples.items()}
    warnings += noise.spread_warnings(rates)
    for line in warnings:
        click.echo("\n".join(wrapped(f"  warning: {line}")), err=True)
    settings = on.settings | {"seconds": seconds, "repeats": repeats, "model": on.recipe.model.name}
    settings["precision"] = findings.precision
    more = {name: {"cpu_s": cost} for name, cost in findings.cpu_s.items()}
    result = record.build("explain", settings, findings.samples, {}, warnings, more)
    explained = figures(findings) | {"applied": _applied(done), "recipe": config.to_toml(on.recipe)}
    result = replace(result, more={"explain": explained})
    keep(result, findings, on, json_file, out)


def figures(findings: "Findings") -> dict[str, Any]:
    """What was found, for JSON. Seconds an image, bytes an image, bytes and FLOPs a second."""
    from benchmarks.explain.measuring import DTYPES
    from benchmarks.explain.model import LOADING

    model, network = findings.model, findings.network
    levels = {level: network.image_bytes(level, DTYPES[findings.precision]) for level in network.elements}
    return {
        "bottleneck": model.bottleneck,
        "headroom": model.headroom(),
        "costs": {stage: cost._asdict() for stage, cost in model.costs.items()},
        "predicted": {"loader": model.rate(LOADING), "train": model.rate()},
        "split_fits_in_memory": findings.fits,
        "pages_not_dropped": findings.stayed,
        "copy_bytes_per_s": findings.copy_bytes_per_s,
        "peak_flops_per_s": findings.peak,
        "flops": network.flops,
        "forward_flops": network.forward_flops,
        "network_bytes": levels,
        "loader_bytes": dict(zip(("encoded", "region", "out"), findings.image_bytes, strict=True)),
        "advice": [asdict(change) | {"expected": gain} for change, gain in findings.found],
    }


def _applied(done: "tuple[list[Change], float, Ratio] | None") -> dict[str, Any] | None:
    if done is None:
        return None
    changes, expected, seen = done
    return {"options": [change.option for change in changes], "expected": expected, "seen": seen._asdict()}


def keep(result: record.Result, findings: "Findings", on: Setup, json_file: Path | None, out: Path | None) -> None:
    """Write the result and the chart where the options say."""
    if json_file:
        record.write(json_file, result)
    if out:
        from benchmarks.explain import report

        stem = out / f"explain-{time.strftime('%Y%m%d-%H%M%S')}"
        record.write(stem.with_suffix(".json"), result)
        title = f"{on.recipe.model.name}, {on.batch_size} × {on.recipe.data.image_size} px, {on.threads} threads"
        report.picture(findings, title).savefig(stem.with_suffix(".png"), dpi=150)
        click.echo(f"kept as {stem}.json and .png")
