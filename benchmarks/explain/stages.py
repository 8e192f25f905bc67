"""The programs that `explain` times: each stage alone, fed from memory, then the whole loader and training.

read            see `reading`
decode          the first part of the loader's graph, on a few batches of encoded images
resize          the rest of the graph, on decoded images: resize, augmentation, normalisation
libjpeg-turbo   the same images decoded whole by simplejpeg in as many threads, for comparison with `decode`
h2d             copies of a batch from pinned memory (only with a GPU)
compute         training steps on a batch in memory, each rank by itself
communication   an all-reduce of as many bytes as the gradients have, in DDP's buckets (only with several ranks)
loader, train   all stages together: batches are thrown away, or trained on
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, repeat
from typing import Any, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from torch import nn

from penstock.benchmarks import programs
from penstock.benchmarks.explain import reading
from penstock.benchmarks.explain.reading import CACHED, DISK
from penstock.benchmarks.measure import Program, Ratio, Sample, in_turn, ratio
from penstock.benchmarks.options import BenchSetup
from penstock.benchmarks.programs import BatchProgram
from penstock.benchmarks.ranks import Together, shared_clock
from penstock.model.networks import build_model
from penstock.pipeline import graph
from penstock.pipeline.augment.params import AugmentParams
from penstock.pipeline.batch import Batch
from penstock.shard_tools.jpeg import SOI
from penstock.shards.program import SHARD_TOOLS
from penstock.training import distributed
from penstock.training.data import image_dtype
from penstock.training.distributed import World

LIBJPEG = "libjpeg-turbo"
NAMES = (
    CACHED,
    "decode",
    "resize",
    LIBJPEG,
    "h2d",
    "compute",
    "communication",
    "loader",
    "train",
)  # in data-flow order
NUM_IMAGES = 512  # about this many images are used again and again; fewer if they take more than MAX_BYTES decoded
MAX_BYTES = 1 << 29
REGION = ("anchor", "shape")  # the arrays that decoding needs
BUCKET_BYTES = 25 << 20  # DistributedDataParallel's default
NOTHING = torch.empty(0)

Pipeline = Any  # nvidia.dali.Pipeline


class EncodedBatch(NamedTuple):
    """The graph's input for one batch: encoded images, the plan's arrays by name, and labels."""

    views: list[np.ndarray]
    arrays: AugmentParams
    labels: torch.Tensor


@dataclass(frozen=True)
class Timings:
    """The measurements, by program.

    samples: the repeats. cpu_s: CPU seconds per image, over all threads and ranks. fits: the training split fits in
    memory. batches: the input of the stages.
    """

    samples: dict[str, list[Sample]]
    cpu_s: dict[str, float]
    fits: bool
    batches: Sequence[EncodedBatch]

    def rates(self) -> dict[str, list[float]]:
        """Return the images/s of each program's repeats."""
        return {name: [one.images_per_s for one in taken] for name, taken in self.samples.items()}

    def rate(self, name: str) -> float:
        """Return a program's median images/s."""
        return statistics.median(self.rates()[name])

    @property
    def reading(self) -> str:
        """The reading program that counts. If all shards fit in memory, only the first epoch reads from the disk."""
        return CACHED if CACHED in self.samples else DISK


class CpuTimed:
    """A program that runs on all ranks. `cpu_s` has the CPU seconds per image of each run."""

    def __init__(self, program: Program, world: World) -> None:
        self.name, self.cpu_s = program.name, list[float]()
        self._program = Together(program, world) if world.world_size > 1 else program

    def run(self, seconds: float) -> Sample:
        cpu, clock = time.process_time(), time.perf_counter()
        sample = self._program.run(seconds)
        busy = (time.process_time() - cpu) / (time.perf_counter() - clock)
        busy = distributed.sum_tensor(torch.tensor(busy, dtype=torch.float64)).item()
        self.cpu_s.append(busy / sample.images_per_s)
        return sample

    def close(self) -> None:
        self._program.close()


def measure(setup: BenchSetup, seconds: float, repeats: int) -> Timings:
    """Time all stages: reading from the disk first, while no shard is open, then the others alternately."""
    world, split = setup.world, setup.dataset.split(setup.recipe.data.train_split)
    fits = bool(distributed.from_rank_0(float(reading.fits_in_memory(split)), world))
    timed, samples = list[CpuTimed](), dict[str, list[Sample]]()
    stored = setup.recipe.data.cache == "pixels"  # if so, nothing is read or decoded after the first epoch
    if not split.url and not stored:
        timed.append(CpuTimed(reading.FromDisk(setup), world))
        samples[DISK] = [timed[0].run(seconds) for _ in range(1 + repeats)][1:]
        reading.load(reading.part(split))
    batches = encoded_batches(setup)
    jpegs = torch.tensor(float(any(map(_are_jpegs, batches))))
    is_there = {
        CACHED: not stored and (fits or bool(split.url)),
        "decode": not stored,
        LIBJPEG: not stored and distributed.sum_tensor(jpegs).item() == world.world_size,
        "h2d": world.device.type == "cuda",
        "communication": world.world_size > 1,
    }
    with ExitStack() as stack:
        for name in (name for name in NAMES if is_there.get(name, True)):
            timed.append(CpuTimed(stack.enter_context(closing(build(name, setup, batches))), world))
        samples |= _in_turn([one for one in timed if one.name != DISK], world, seconds, repeats)
    cpu_s = {one.name: statistics.median(one.cpu_s[-repeats:]) for one in timed}
    return Timings(samples, cpu_s, fits, batches)


def compare(
    name: str, changed: BenchSetup, setup: BenchSetup, batches: Sequence[EncodedBatch], seconds: float, repeats: int
) -> Ratio:
    """Time a stage with changed settings, alternately with the unchanged stage. Returns the ratio of their speeds."""
    with ExitStack() as stack:
        pair = [stack.enter_context(closing(build(name, one, batches))) for one in (changed, setup)]
        pair[0].name = f"{name}, changed"
        taken = _in_turn([CpuTimed(program, setup.world) for program in pair], setup.world, seconds, repeats).values()
    return ratio(*([one.images_per_s for one in samples] for samples in taken))


def _in_turn(timed: Sequence[CpuTimed], world: World, seconds: float, repeats: int) -> dict[str, list[Sample]]:
    return in_turn(timed, seconds, repeats, shared_clock(world) if world.world_size > 1 else time.monotonic)


def build(name: str, setup: BenchSetup, batches: Sequence[EncodedBatch]) -> BatchProgram:
    """Build the program of a stage, by name. Reading from the disk is not built here."""
    recipe, dataset, world, batch_size, _ = setup
    match name:
        case "read, cached":
            reader = reading.Reader(setup, programs.MIN_BATCHES)
            program = BatchProgram(name, programs.endless(reader), next, torch.device("cpu"), reader.close)
        case "decode":
            program = _graph_program(_decoder(setup, batches), batches, world.device)
        case "resize" if recipe.data.cache == "pixels":
            program = programs.build("loader", "dali", recipe, dataset, world, batch_size)
        case "resize":
            program = _graph_program(_finisher(setup, batches), batches, world.device)
        case "libjpeg-turbo":
            program = _libjpeg([batch for batch in batches if _are_jpegs(batch)], setup.threads)
        case "h2d":
            program = programs.build_copies(recipe, dataset, world, batch_size)
        case "compute":
            single = replace(world, rank=0, world_size=1, local_world_size=1)  # gradients are not exchanged
            program = programs.build("compute", "synthetic", recipe, dataset, single, batch_size)
        case "communication":
            sizes = [one.numel() for one in meta_network(setup).parameters() if one.requires_grad]
            program = communication(setup, sum(sizes))
        case "loader" | "train":
            program = programs.build(name, "dali", recipe, dataset, world, batch_size)
    program.name = name
    return program


def meta_network(setup: BenchSetup) -> nn.Module:
    """Build the network on the meta device, without memory for its parameters."""
    with torch.device("meta"):
        return build_model(setup.recipe.model, len(setup.dataset.classes), setup.recipe.data.image_size)


def encoded_batches(setup: BenchSetup) -> list[EncodedBatch]:
    """Copy the first batches of an epoch into memory. The loader has already quarantined images with bad headers."""
    found, num_bytes = list[EncodedBatch](), 0
    with closing(reading.Reader(setup)) as reader:
        for batch in reader.iter_epoch(0):
            views = [view.copy() for view in reader.views]
            found.append(EncodedBatch(views, reader.arrays, batch.labels.cpu()))
            num_bytes += 3 * int(reader.arrays["shape"].prod(axis=1).sum())
            if len(found) * setup.batch_size >= NUM_IMAGES or num_bytes > MAX_BYTES:
                break
    return found


def _decoder(setup: BenchSetup, batches: Sequence[EncodedBatch]) -> Pipeline:
    """Build the first part of the loader's graph, which decodes."""
    given = cycle([(graph.encoded(one.views), *(one.arrays[name] for name in REGION)) for one in batches])
    pipe = _new_pipeline(setup)
    with pipe:
        jpegs, region = graph.inputs(lambda: next(given), REGION)
        pipe.set_outputs(graph.decode(jpegs, region, setup.recipe.data, on_gpu=_decodes_on_gpu(setup)))
    pipe.build()
    return pipe


def _finisher(setup: BenchSetup, batches: Sequence[EncodedBatch]) -> Pipeline:
    """Build the rest of the loader's graph, fed with decoded images on the device.

    Raises ValueError if an image cannot be decoded.
    """
    from nvidia.dali import fn

    decoder, recipe, root = _decoder(setup, batches), setup.recipe, setup.dataset.root
    try:
        decoded = cycle([decoder.run()[0] for _ in batches])
    except RuntimeError:
        remedy = f"Find it with: {SHARD_TOOLS} verify --decode {root}"
        raise ValueError(f"{root}: DALI cannot decode one of the first images. {remedy}") from None
    names = tuple(name for name in batches[0].arrays if name not in REGION)
    given = cycle([tuple(one.arrays[name] for name in names) for one in batches])
    source = partial(fn.external_source, batch=True, no_copy=True)
    pipe = _new_pipeline(setup)
    with pipe:
        images = source(lambda: next(decoded), device="gpu" if _decodes_on_gpu(setup) else "cpu", layout="HWC")
        arrays = dict(zip(names, source(lambda: next(given), num_outputs=len(names)), strict=True))
        size, half = recipe.data.image_size, image_dtype(recipe, setup.world) == torch.float16
        on_gpu = _gpu(setup) is not None
        pipe.set_outputs(graph.finish(images, arrays, recipe.data, image_size=size, on_gpu=on_gpu, half=half))
    pipe.build()
    return pipe


def _new_pipeline(setup: BenchSetup) -> Pipeline:
    data = setup.recipe.data
    return graph.new_pipeline(data, batch_size=setup.batch_size, threads=setup.threads, gpu=_gpu(setup))


def _decodes_on_gpu(setup: BenchSetup) -> bool:
    return graph.decodes_on_gpu(setup.recipe.data, _gpu(setup) is not None)


def _gpu(setup: BenchSetup) -> int | None:
    device = setup.world.device
    return device.index or 0 if device.type == "cuda" else None


def _graph_program(pipe: Pipeline, batches: Sequence[EncodedBatch], device: torch.device) -> BatchProgram:
    def outputs() -> Iterator[Batch]:
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        for batch in cycle(batches):
            output = pipe.run(stream)
            yield Batch(NOTHING, batch.labels, NOTHING)
            del output

    return BatchProgram("graph", outputs(), next, device)


def _libjpeg(batches: Sequence[EncodedBatch], threads: int) -> BatchProgram:
    pool = ThreadPoolExecutor(threads)

    def decoded() -> Iterator[Batch]:
        for batch in cycle(batches):
            for _ in pool.map(lambda view: simplejpeg.decode_jpeg(view, "RGB"), batch.views):
                pass
            yield Batch(NOTHING, batch.labels, NOTHING)

    return BatchProgram(LIBJPEG, decoded(), next, torch.device("cpu"), pool.shutdown)


def _are_jpegs(batch: EncodedBatch) -> bool:
    return all(view[: len(SOI)].tobytes() == SOI for view in batch.views)


def communication(setup: BenchSetup, num_params: int) -> BatchProgram:
    """Build an all-reduce of float32 gradients: gloo on the CPU, NCCL on GPUs."""
    world = setup.world
    buckets = torch.zeros(num_params, device=world.device).split(BUCKET_BYTES // 4)
    batch = Batch(NOTHING, torch.empty(setup.batch_size), NOTHING)

    def exchange(taken: Iterator[Batch]) -> None:
        next(taken)
        for bucket in buckets:
            distributed.sum_tensor(bucket)

    return BatchProgram("communication", repeat(batch), exchange, world.device, tied=world)
