"""Stages of the part `decode` that ask whether a way of decoding works: which decoder runs, its pixels, its speed.

A way is (whole image or region) × (fancy upsampling or not), a stage each, since one may end its process
(nvImageCodec's issue 55). In a stage every kind of JPEG is decoded at every `hw_decoder_load`.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.gpu import data, pixels
from benchmarks.gpu.report import write_json
from benchmarks.gpu.stage import Job
from benchmarks.programs import BatchProgram, endless
from pipeline.batch import Batch, Loader
from pipeline.build import threads_per_rank
from pipeline.decoders_used import LOG_LEVEL, decoders_used
from recipes import Recipe
from shards.format import ShardSet

ON_GPU = ("nvjpeg_hw_decoder", "nvjpeg_cuda_decoder")


def whole_fancy(job: Job) -> None:
    matrix(job, "whole", True)


def whole_plain(job: Job) -> None:
    matrix(job, "whole", False)


def region_fancy(job: Job) -> None:
    matrix(job, "region", True)


def region_plain(job: Job) -> None:
    matrix(job, "region", False)


def recipe_of(job: Job, way: str, fancy: bool, *sets: str) -> Recipe:
    return job.resnet(f"data.gpu_decode={way}", f"data.fancy_upsampling={str(fancy).lower()}", *sets)


def jpegs(job: Job, kind: str) -> ShardSet:
    num_train, side = job.scale.jpeg_images, job.scale.jpeg_side
    return data.packed(job.work, kind, num_train=num_train, num_val=8, num_classes=8, side=side)


def matrix(job: Job, way: str, fancy: bool) -> None:
    """A row for each kind and load; and for each kind the fastest load whose pixels are right."""
    scale, threads = job.scale, threads_per_rank(0, 1)
    job.report.settings(gpu_decode=way, fancy_upsampling=fancy, threads=threads)
    used = logged(job, way, fancy)  # before this process has anything to do with CUDA
    for kind in scale.kinds:
        dataset, found = jpegs(job, kind), dict[float, float]()
        plain = recipe_of(job, way, fancy)
        theirs = pixels.oracle(plain, dataset, scale.jpeg_batch, scale.jpeg_batches, job.device, threads)
        for load in scale.loads:
            with job.report.attempt(f"{kind}, load {load:g}"):
                recipe = recipe_of(job, way, fancy, f"data.hw_decoder_load={load}")
                with closing(opened(job, recipe, dataset)) as loader:  # one for both: to open it takes longest
                    ours = endless(loader)
                    apart = pixels.difference(ours, theirs, recipe.data, job.device)
                    rate, right = speed(job, ours), apart.fits(fancy)
                counts = used.get(f"{kind} {load:g}", Counter())
                job.report.row(f"{kind}, load {load:g}", rate, "images/s", right=right, shown=False, decoders=counts,
                               text=f"{named(counts)}; {apart}", **apart._asdict())  # fmt: skip
                found |= {load: rate} if right else {}
        if found:
            load = max(found, key=found.__getitem__)
            counts = used.get(f"{kind} {load:g}", Counter())
            job.report.row(f"{kind}: fastest load {load:g}", found[load], "images/s", text=named(counts))
            share = sum(counts.get(name, 0) for name in ON_GPU) / max(1, sum(counts.values()))
            job.report.row(f"{kind}: decoded on the GPU", share, "of the images", at_least=0.99, shown=job.on_gpu)


def named(counts: Counter[str]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name.removesuffix('_decoder')} {count / total:.0%}" for name, count in counts.items()) or "?"


def opened(job: Job, recipe: Recipe, dataset: ShardSet) -> Loader:
    return pixels.open_loader(recipe, dataset, "dali", job.scale.jpeg_batch, job.device, threads_per_rank(0, 1))


def speed(job: Job, batches: Iterator[Batch]) -> float:
    """images/s of a loader, a turn after half a turn of warm-up: enough to tell decoders apart."""
    program = BatchProgram("dali", batches, next, job.device)
    program.run(job.scale.turn_s / 2)
    return program.run(job.scale.turn_s).images_per_s


def logged(job: Job, way: str, fancy: bool) -> dict[str, Counter[str]]:
    """Kind and load → images by decoder, by the log of a process of its own. Where that crashes, what it had found."""
    answer = job.work / f"decoders-{way}-{fancy}.json"
    for kind in job.scale.kinds:
        jpegs(job, kind)  # made before, so that the process has nothing else to do
    process = job.process(_log_decoders, job, way, fancy, answer)
    process.start()
    process.join()
    if process.exitcode:
        job.report.row("which decoder runs", judged=f"failed (the process that logs it ended with {process.exitcode})")
    return (
        {key: Counter(counts) for key, counts in json.loads(answer.read_text(encoding="utf-8")).items()}
        if answer.exists()
        else {}
    )


def _log_decoders(job: Job, way: str, fancy: bool, answer: Path) -> None:
    """Decode with nvImageCodec's log on, and write what each decoder took after each kind and load."""
    os.environ.update(LOG_LEVEL)
    found: dict[str, Counter[str]] = {}
    for kind in job.scale.kinds:
        for load in job.scale.loads:
            log = answer.with_suffix(f".{kind}-{load:g}.log")
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(descriptor, number)
            os.close(descriptor)
            recipe = recipe_of(job, way, fancy, f"data.hw_decoder_load={load}", "data.prefetch=1")
            with closing(opened(job, recipe, jpegs(job, kind))) as loader:
                next(loader.iter_epoch(0))
            found[f"{kind} {load:g}"] = decoders_used(log.read_text(encoding="utf-8", errors="replace"))
            write_json(answer, found)
