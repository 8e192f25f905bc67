"""Time programs alternately for `bench.py loader | compute | train`: a `record.Result` and a printed table."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from time import monotonic

import click
import torch

from penstock.benchmarks import noise, programs, record
from penstock.benchmarks.measure import Program, Sample, in_turn, ratio
from penstock.benchmarks.options import BenchSetup
from penstock.benchmarks.processes import family, memory_mb
from penstock.benchmarks.programs import BatchProgram, Kind
from penstock.benchmarks.ranks import Alone, Together, shared_clock
from penstock.benchmarks.record import JSON, Result
from penstock.benchmarks.tables import COLUMNS, cells, columns_of
from penstock.benchmarks.text import shown_rate, tabulated, wrapped
from penstock.training import environment

LEAST_AHEAD, MOST_WAIT = 0.2, 0.1  # in steps; as a share of the time, above which the loader is the limit


def build(kind: Kind, names: Sequence[str], setup: BenchSetup) -> list[Program]:
    """Build the programs of the loaders `names`.

    With several ranks each program runs on all ranks at once, and also on rank 0 alone with one rank's share of the
    threads.
    """
    recipe, dataset, world, batch_size, _ = setup
    built = [programs.build(kind, name, recipe, dataset, world, batch_size) for name in names]
    if world.world_size == 1:
        return list(built)
    recipe = replace(recipe, data=replace(recipe.data, threads=setup.threads))
    single = replace(world, rank=0, world_size=1, local_world_size=1)
    alone = [
        programs.build(kind, name, recipe, dataset, single, batch_size) if world.is_main else None for name in names
    ]
    return [Together(program, world) for program in built] + [
        Alone(one_rank(name), program, world) for name, program in zip(names, alone, strict=True)
    ]


def require_gpu(device: str) -> None:
    """Raise ValueError unless `device`, the value of --device, selects a GPU."""
    if device == "cpu" or not torch.cuda.is_available():
        raise ValueError("h2d needs a GPU, but torch sees none or --device is cpu. It copies batches from CPU to GPU.")


def build_copies(setup: BenchSetup) -> list[Program]:
    """Build copies of a batch to the GPU. With several ranks, all copy at once."""
    recipe, dataset, world, batch_size, _ = setup
    built = [programs.build_copies(recipe, dataset, world, batch_size, pinned) for pinned in (True, False)]
    return list(built) if world.world_size == 1 else [Together(program, world) for program in built]


def one_rank(name: str) -> str:
    """Return the name of a program that rank 0 runs alone."""
    return f"{name}, 1 rank"


def time_programs(
    benchmark: str, built: Sequence[Program], setup: BenchSetup, seconds: float, repeats: int, settings: JSON
) -> Result:
    """Time programs alternately, and close them.

    Returns the result. Its ratios are those of the first program to each other one. With several ranks it also has the
    scaling efficiency: the rate of all ranks divided by their number times the rate of one. `settings`: additional
    settings for the result.
    """
    world = setup.world
    with ExitStack() as stack, noise.watched() as warnings:
        for program in built:
            stack.enter_context(closing(program))
        clock = shared_clock(world) if world.world_size > 1 else monotonic
        samples = in_turn(built, seconds, repeats, clock)
        details = {program.name: _details(program, repeats) for program in built}
        if len(built) == world.world_size == 1:  # otherwise it would cover all programs, or one rank of several
            details[built[0].name]["memory_mb"] = memory_mb(family()) or None  # 0: unknown
    rates = {name: [one.images_per_s for one in taken] for name, taken in samples.items()}
    if benchmark == "h2d":
        gigabytes = programs.image_bytes(setup.recipe, world) / 1e9
        for name in rates:
            details[name]["gigabytes_per_s"] = [rate * gigabytes for rate in rates[name]]
    alone = {program.name for program in built if isinstance(program, Alone)}
    first, *others = (name for name in rates if name not in alone)
    ratios = {f"{first} / {other}": ratio(rates[first], rates[other]) for other in others}
    for name in (first, *others):
        if (one := one_rank(name)) in alone:
            linear = [world.world_size * rate for rate in rates[one]]
            ratios[f"{name} / ({world.world_size} × {one})"] = ratio(rates[name], linear)
    lines = [*warnings, *noise.spread_warnings(rates)]
    lines += launch_warnings(samples) if benchmark in ("compute", "train") else []
    settings = setup.settings | {"seconds": seconds, "repeats": repeats} | settings
    return record.build(benchmark, settings, samples, ratios, lines, details)


def launch_warnings(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Return a warning for each program with a GPU that seems to wait for the CPU to launch kernels.

    The sign: when the CPU launches the last step's last kernel, the GPU has less than a fifth of a step left to do. If
    the GPU is the limit, it lags behind by its queue of about 1,000 launches, which is most of a step or several steps.
    The exception is a step that waits for the GPU, as with some optimizers.
    """
    found = []
    for name, taken in samples.items():
        ahead, wait = (statistics.median(values) for values in ((s.ahead for s in taken), (s.data_wait for s in taken)))
        if 0 < ahead < LEAST_AHEAD and wait < MOST_WAIT:  # 0 on a CPU
            found.append(
                f"{name}: launching kernels may be the limit: the CPU is only {ahead:.2f} steps ahead of the GPU. "
                "Try model.compile=true, then model.compile_mode=reduce-overhead (CUDA graphs)."
            )
    return found


def _details(program: Program, repeats: int) -> JSON:
    """Return a program's figures other than its samples."""
    if isinstance(program, Together):
        return {"images_per_s_of_rank": [list(one) for one in zip(*program.per_rank[-repeats:], strict=True)]}
    return {"first_batch_s": program.first_batch_s} if isinstance(program, BatchProgram) else {}


def show(result: Result, setup: BenchSetup) -> None:
    """Print a table with one line per program, one line per ratio, and the warnings."""
    settings, world = result.settings, setup.world
    on_each = f"{world.world_size} ranks, " if world.world_size > 1 else ""
    head = (
        f"{result.benchmark}: {on_each}batch size {setup.batch_size} at {settings['image_size']} px, "
        f"{setup.threads} threads, {environment.device_name(world.device)}; "
        f"median [range] of {settings['repeats']} repeats of {settings['seconds']:g} s"
    )
    columns = columns_of([result])
    rows = [["program", "images/s", *(COLUMNS[column][0] for column in columns)]]
    rows += [[name, *cells(figures, columns)] for name, figures in result.programs.items()]
    lines = [*wrapped(head), *tabulated(rows, 1)]
    for name, figures in result.programs.items():
        if by_rank := figures.images_per_s_of_rank:
            rates = ", ".join(shown_rate(statistics.median(rates)) for rates in by_rank)
            lines += wrapped(f"  {name}, by rank: {rates} images/s")
    if result.benchmark == "train" and world.device.type == "cpu":
        lines += wrapped(
            "  On a CPU decoding shares the cores, so it slows training even if training never waits for data. "
            "See `bench.py explain`."
        )
    for name, one in result.ratios.items():
        shown = f"{one.median:.2f}, 95% interval {one.low:.2f}–{one.high:.2f} [{one.min:.2f}–{one.max:.2f}]"
        lines += wrapped(f"  {'scaling efficiency ' if ' × ' in name else ''}{name}: {shown}")
    click.echo("\n".join(lines))
    for line in result.warnings:
        click.echo("\n".join(wrapped(f"  warning: {line}")), err=True)
