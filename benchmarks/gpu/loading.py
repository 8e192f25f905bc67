"""Stages of the part `decode` that ask how fast the loader is: by the GPU engines' share, threads, prefetch, shards."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks import images, programs
from benchmarks.gpu import data
from benchmarks.gpu.expected import LOADER_AMBITION, LOADER_GOAL
from benchmarks.gpu.stage import Job
from benchmarks.programs import BatchProgram
from pipeline.build import threads_per_rank
from shards.format import ShardSet

ROOT = Path(__file__).parents[2]


def originals(job: Job) -> ShardSet:
    """Those of --data, or JPEGs as heavy as ImageNet's, as `bench.py --data synthetic:469x401` makes and keeps them."""
    if job.data:
        return ShardSet.open(job.data)
    folder = job.work if job.rehearse else ROOT / images.FOLDER
    return ShardSet.open(images.ensure(job.scale.jpegs, folder))


def sweep(job: Job, variants: Mapping[str, tuple[ShardSet, tuple[str, ...]]]) -> None:
    """images/s of the loader in variants, in turn: name → the set, and what is laid over the recipe. The fastest alone
    is held against the goal. Each round's figures are in the result before the next one is begun: time may run out."""
    size, scale = job.scale.batch_sizes[0], job.scale
    built: dict[str, BatchProgram] = {}
    rates: dict[str, list[float]] = {}
    for name, (dataset, sets) in variants.items():
        with job.report.attempt(name):
            built[name] = programs.build("loader", "dali", job.resnet(*sets), dataset, job.world, size)
            first = built[name].run(scale.turn_s).images_per_s  # is something, should the rest end in a crash
            job.report.row(name, first, "images/s", text="the first turn", batch_size=size)
            rates[name] = []
    for _ in range(scale.turns):
        for name in rates:
            rates[name].append(built[name].run(scale.turn_s).images_per_s)
            job.report.row(name, rates[name], "images/s", batch_size=size, again=True)
    for program in built.values():
        program.close()
    if rates:
        fastest = max(rates, key=lambda name: median(rates[name]))
        job.report.row(f"fastest: {fastest}", rates[fastest], "images/s", at_least=LOADER_GOAL,
                       text=f"the ambition is {LOADER_AMBITION:,}")  # fmt: skip


def hw_load(job: Job) -> None:
    dataset = originals(job)
    sweep(job, {f"load {load:g}": (dataset, (f"data.hw_decoder_load={load}",)) for load in job.scale.fine_loads})


def threads(job: Job) -> None:
    dataset, most = originals(job), 2 * threads_per_rank(0, 1)
    counts = [count for count in reversed(job.scale.threads) if count <= most]
    sweep(job, {f"{count} threads": (dataset, (f"data.threads={count}",)) for count in counts})


def prefetch(job: Job) -> None:
    dataset = originals(job)
    sweep(job, {f"prefetch {count}": (dataset, (f"data.prefetch={count}",)) for count in job.scale.prefetches})


def shards(job: Job) -> None:
    """Images as they are, with the shorter side 256, with the longer 500 (both at quality 90)."""
    source = originals(job)
    made = data.repacked
    side = {"short-side 256": {"short_side": 256}, "max-side 500": {"max_side": 500}}
    sets = {name: made(source.root, job.work / name.replace(" ", "-"), **encode) for name, encode in side.items()}
    sweep(job, {name: (dataset, ()) for name, dataset in {"original sizes": source, **sets}.items()})
