"""What `bench.py loader | compute | train | h2d` do: programs in turn → a table for people, and a result (`record`)."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import click

from benchmarks import noise, programs, record
from benchmarks.measure import Program, Ratio, Sample, in_turn, ratio, ratio_of_medians
from benchmarks.options import Opened
from benchmarks.processes import memory_mb, stats, tree
from benchmarks.programs import BatchProgram, Kind
from benchmarks.ranks import Alone, Together, shared_clock
from benchmarks.text import fitted, shown_rate, wrapped
from training import environment

LEAST_AHEAD, MOST_WAIT = 0.2, 0.1  # steps; of the time, beyond which the loader limits


def measure_rates(
    benchmark: str, built: Sequence[Program], on: Opened, seconds: float, repeats: int, more: dict[str, Any]
) -> dict[str, Any]:
    """Time programs in turn. Returns the result, with the ratio of the first to each other; over several ranks
    programs must have been made by `on_ranks`. `more`: further settings. The programs are closed."""
    world = on.world
    with ExitStack() as stack, noise.watched(world.device) as warnings:
        for program in built:
            stack.enter_context(closing(program))
        clock = shared_clock(world) if world.world_size > 1 else monotonic
        samples = in_turn(built, seconds, repeats, clock)
        details = {program.name: _details(program, repeats) for program in built}
        if len(built) == 1:  # else it is of all of them together
            memory = memory_mb(tree(os.getpid(), stats()))
            details[built[0].name] |= {"memory_mb": memory} if memory else {}  # 0 where the kernel does not tell
    rates = {name: [one.images_per_s for one in taken] for name, taken in samples.items()}
    settings = on.settings | {"seconds": seconds, "repeats": repeats} | more
    alone = {program.name for program in built if isinstance(program, Alone)}
    first, *others = (name for name in rates if name not in alone)
    ratios = {f"{first} / {other}": ratio(rates[first], rates[other]) for other in others}
    for name in (first, *others):
        if (one := one_rank(name)) in alone:
            linear = [world.world_size * rate for rate in rates[one]]
            ratios[f"{name} / ({world.world_size} × {one})"] = ratio(rates[name], linear)
    lines = [*warnings, *noise.spread_warnings(rates)]
    if benchmark in ("compute", "train"):
        lines += launch_warnings(samples)
    return record.build(benchmark, settings, samples, ratios, lines, details)


def launch_warnings(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """A line for each program whose GPU seems to wait for the CPU to launch its kernels: when the CPU asks for the last
    step's last kernel, less than a fifth of a step is still to be done. Where the GPU limits, it is behind by what its
    queue holds, some 1,000 launches: most of a step, or several; unless each step waits for it, as some optimizers do.
    """
    found = []
    for name, taken in samples.items():
        ahead, wait = (statistics.median(values) for values in ((s.ahead for s in taken), (s.data_wait for s in taken)))
        if 0 < ahead < LEAST_AHEAD and wait < MOST_WAIT:  # on a CPU 0
            found.append(
                f"{name}: perhaps launching kernels limits, for the CPU is only {ahead:.2f} steps ahead of the GPU: "
                "try model.compile=true, then model.compile_mode=reduce-overhead (CUDA graphs)"
            )
    return found


def _details(program: Program, repeats: int) -> dict[str, Any]:
    """What a result has of a program besides its samples."""
    found: dict[str, Any] = {}
    if isinstance(program, Together):
        found["images_per_s_of_rank"] = [list(one) for one in zip(*program.per_rank[-repeats:], strict=True)]
    if isinstance(program, BatchProgram) and program.first_batch_s is not None:
        found["first_batch_s"] = program.first_batch_s
    return found


def on_ranks(kind: Kind, names: Sequence[str], on: Opened) -> list[Program]:
    """The programs of loaders `names`. Over several ranks each runs on all of them at once, and on rank 0 alone, with
    the threads that a rank has beside the others."""
    recipe, dataset, world, batch_size, _ = on
    built = [programs.build(kind, name, recipe, dataset, world, batch_size) for name in names]
    if world.world_size == 1:
        return list(built)
    recipe = replace(recipe, data=replace(recipe.data, threads=on.threads))
    single = replace(world, rank=0, world_size=1, local_world_size=1)
    return [Together(program, world) for program in built] + [
        Alone(
            one_rank(name),
            programs.build(kind, name, recipe, dataset, single, batch_size) if world.is_main else None,
            world,
        )
        for name in names
    ]


def one_rank(name: str) -> str:
    """What a program is called that rank 0 runs alone."""
    return f"{name}, 1 rank"


def compared(result: dict[str, Any], earlier_file: Path, earlier: dict[str, Any]) -> list[str]:
    """Add to the result its ratios to an earlier one, for the programs that both have. Returns lines about settings
    in which the two differ. Raises ValueError where they have no program in common."""
    shared = [name for name in result["programs"] if name in earlier["programs"]]
    if not shared:
        raise ValueError(f"{earlier_file}: has no program in common with this; it has {', '.join(earlier['programs'])}")
    for name in shared:
        ours, theirs = (one["programs"][name]["images_per_s"] for one in (result, earlier))
        result["ratios"][f"{name} / {name} of {earlier_file}"] = ratio_of_medians(ours, theirs)._asdict()
    old, new = earlier["settings"], result["settings"]
    differing = [key for key in new if key in old and new[key] != old[key] and key not in ("seconds", "repeats")]
    lines = [f"{key}: {old[key]} in {earlier_file}, {new[key]} here" for key in differing]
    if earlier["benchmark"] != result["benchmark"]:
        lines.append(f"benchmark: {earlier['benchmark']} in {earlier_file}, {result['benchmark']} here")
    return lines


def show(result: dict[str, Any], on: Opened) -> None:
    """For people: a line a program and a line a ratio, then the warnings."""
    settings, world = result["settings"], on.world
    on_each = f"{world.world_size} ranks, " if world.world_size > 1 else ""
    head = (
        f"{result['benchmark']}, {on_each}{on.batch_size} × {settings['image_size']} px, {on.threads} threads, "
        f"{environment.device_name(world.device)}; median [range] of {settings['repeats']} × {settings['seconds']:g} s"
    )
    click.echo("\n".join(wrapped(head)))
    width = max(10, *map(len, result["programs"]))
    for name, figures in result["programs"].items():
        click.echo("\n".join(fitted(f"  {name:<{width}} ", program_parts(figures))))
    if result["benchmark"] == "train" and world.device.type == "cpu":
        click.echo(
            "  on a CPU decoding shares the cores: it slows training also where that waits for no data (`explain`)"
        )
    for name, values in result["ratios"].items():
        what = "scaling efficiency " if " × " in name else ""
        click.echo("\n".join(fitted(f"  {what}{name}: ", shown_ratio(Ratio(**values)))))
    for line in result["warnings"]:
        click.echo("\n".join(wrapped(f"  warning: {line}")), err=True)


def program_parts(figures: dict[str, Any]) -> list[str]:
    rates = figures["images_per_s"]
    parts = [f"{shown_rate(statistics.median(rates)):>9} images/s [{shown_rate(min(rates))}–{shown_rate(max(rates))}]"]
    if "gigabytes_per_s" in figures:
        return [*parts, f"{statistics.median(figures['gigabytes_per_s']):.2f} GB/s"]
    parts.append(f"waiting for data {statistics.median(figures['data_wait']):.1%}")
    if "first_batch_s" in figures:
        parts.append(f"first batch {figures['first_batch_s']:.2f} s")
    if "memory_mb" in figures:
        parts.append(f"memory {figures['memory_mb']:,.0f} MB")
    if by_rank := figures.get("images_per_s_of_rank"):
        ranks = [shown_rate(statistics.median(one)) for one in by_rank]
        parts += [f"{'' if number else 'a rank: '}{one}" for number, one in enumerate(ranks)]
    return parts


def shown_ratio(found: Ratio) -> list[str]:
    """Its parts."""
    return [f"{found.median:.2f}, 95 % interval {found.low:.2f}–{found.high:.2f}", f"[{found.min:.2f}–{found.max:.2f}]"]


def add_bytes(result: dict[str, Any], image_bytes: int) -> None:
    """Give each program its GB/s (10⁹ bytes), from its images/s."""
    for figures in result["programs"].values():
        figures["gigabytes_per_s"] = [rate * image_bytes / 1e9 for rate in figures["images_per_s"]]


def keep(result: dict[str, Any], json_file: Path | None, out: Path | None) -> None:
    """Write the result where the options say."""
    if json_file:
        record.write(json_file, result)
    if out:
        file = out / f"{result['benchmark']}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        record.write(file, result)
        click.echo(f"  kept as {file}")
