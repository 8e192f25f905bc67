"""The stages as `measure.Program`s, each alone: what they are fed lies ready in memory, what they make is thrown away.

read            see `reading`
decode          the first part of the loader's graph, on a few batches of encoded images
resize          the rest of it, on decoded images: resize, augmentation, normalisation
libjpeg-turbo   the same encoded images decoded whole by simplejpeg in as many threads: what bounds `decode`
communication   the sum over the ranks of as many bytes as the gradients have, in DDP's buckets
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, repeat
from typing import Any

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch

from benchmarks.measure import Program, Sample
from benchmarks.options import Setup
from benchmarks.programs import BatchProgram, repeated
from pipeline import graph
from pipeline.batch import Batch
from pipeline.feed import Feed
from pipeline.probe import bad_header
from pipeline.reader import open_reader
from shard_tools.jpeg import SOI
from shards.format import Split
from training import distributed
from training.data import image_dtype
from training.distributed import World

HELD_IMAGES = 512  # so many or a little more go round, fewer where they take more than HELD_BYTES decoded
HELD_BYTES = 1 << 29
REGION = ("anchor", "shape")  # the arrays that decoding takes
BUCKET_BYTES = 25 << 20  # DistributedDataParallel's default


class Costed:
    """A program, and what its images cost: `cpu_s` has the CPU seconds an image of each run, of all ranks together."""

    def __init__(self, program: Program) -> None:
        self.name, self._program = program.name, program
        self.cpu_s: list[float] = []

    def run(self, seconds: float) -> Sample:
        cpu, clock = time.process_time(), time.perf_counter()
        sample = self._program.run(seconds)
        busy = (time.process_time() - cpu) / (time.perf_counter() - clock)
        busy = distributed.sum_tensor(torch.tensor(busy, dtype=torch.float64)).item()
        self.cpu_s.append(busy / sample.images_per_s)
        return sample

    def close(self) -> None:
        self._program.close()


def training_feed(on: Setup, split: Split, min_batches: int) -> Feed:
    """This rank's share of a training split, its rows repeated to so many batches at least."""
    recipe, world = on.recipe, on.world
    return Feed(
        split=repeated(split, min_batches * on.batch_size * world.world_size),
        config=recipe.data,
        augment=recipe.augment,
        batch_size=on.batch_size,
        global_batch_size=on.batch_size * world.world_size,
        seed=recipe.train.seed,
        rank=world.rank,
        world_size=world.world_size,
        local_world_size=world.local_world_size,
    )


class Held:
    """A few batches in memory, as the graph takes them: `views` encoded, `arrays` the plan's, `labels`."""

    def __init__(self, on: Setup) -> None:
        feed = training_feed(on, on.dataset.split(on.recipe.data.train_split), 1)
        on_gpu = on.world.device.type == "cuda"
        self.views: list[list[np.ndarray]] = []
        self.arrays: list[dict[str, np.ndarray]] = []
        self.labels: list[torch.Tensor] = []
        num_bytes, reader = 0, open_reader(feed)
        for planned in feed.batches(0, 0, feed.image_size):
            views = [view.copy() for view in reader.views(planned.sample_ids)]
            rows = feed.split.samples[planned.sample_ids]
            sizes = zip(views, rows["height"].tolist(), rows["width"].tolist(), strict=True)
            if any(bad_header(*image) for image in sizes):
                continue
            num_bytes += 3 * int(planned.params["shape"].prod(axis=1).sum())
            self.views.append(views)
            self.arrays.append(graph.graph_inputs(planned.params, feed.config, on_gpu))
            self.labels.append(torch.from_numpy(planned.labels))
            if len(self.views) * on.batch_size >= HELD_IMAGES or num_bytes > HELD_BYTES:
                break
        reader.close()
        if not self.views:
            raise ValueError(
                f"{feed.split.root}: every batch has an image that cannot be decoded; find them with: "
                f"python -m shard_tools verify --decode {feed.split.root}"
            )
        self.num_images = len(self.views) * on.batch_size
        self.encoded_bytes = sum(len(view) for views in self.views for view in views) / self.num_images
        self.region_bytes = num_bytes / self.num_images  # decoded, uint8 RGB


def build_decode(on: Setup, held: Held) -> BatchProgram:
    return _program("decode", _decoder(on, held), held, on.world.device)


def build_resize(on: Setup, held: Held) -> BatchProgram:
    decoder = _decoder(on, held)
    try:
        decoded = [_copied(decoder.run()[0]) for _ in held.views]
    except RuntimeError:
        root = on.dataset.root
        raise ValueError(
            f"{root}: DALI cannot decode one of the first images; find it with: "
            f"python -m shard_tools verify --decode {root}"
        ) from None
    return _program("resize", _finisher(on, held, decoded), held, on.world.device)


def _decoder(on: Setup, held: Held) -> Any:
    """The first part of the loader's graph."""
    given = cycle(
        [
            (graph.encoded(views), *_picked(arrays, REGION))
            for views, arrays in zip(held.views, held.arrays, strict=True)
        ]
    )
    pipe = _new_pipeline(on)
    with pipe:
        jpegs, params = graph.inputs(lambda: next(given), REGION)
        pipe.set_outputs(graph.decode(jpegs, params, on.recipe.data, on_gpu=_decodes_on_gpu(on)))
    pipe.build()
    return pipe


def _finisher(on: Setup, held: Held, decoded: Sequence[Any]) -> Any:
    """The rest of it, on batches of decoded images, which lie on the device."""
    from nvidia.dali import fn

    names = tuple(name for name in held.arrays[0] if name not in REGION)
    given, images = cycle([_picked(arrays, names) for arrays in held.arrays]), cycle(decoded)
    on_gpu = _gpu(on) is not None
    pipe = _new_pipeline(on)
    with pipe:
        arrays = fn.external_source(source=lambda: next(given), num_outputs=len(names), batch=True, no_copy=True)
        regions = fn.external_source(
            source=lambda: next(images), batch=True, no_copy=True, device="gpu" if _decodes_on_gpu(on) else "cpu",
            layout="HWC",
        )  # fmt: skip
        pipe.set_outputs(
            graph.finish(
                regions, dict(zip(names, arrays, strict=True)), on.recipe.data,
                image_size=on.recipe.data.image_size, on_gpu=on_gpu,
                half=image_dtype(on.recipe, on.world) == torch.float16,
            )
        )  # fmt: skip
    pipe.build()
    return pipe


def _new_pipeline(on: Setup) -> Any:
    return graph.new_pipeline(on.recipe.data, batch_size=on.batch_size, threads=on.threads, gpu=_gpu(on))


def _decodes_on_gpu(on: Setup) -> bool:
    return graph.decodes_on_gpu(on.recipe.data, _gpu(on) is not None)


def _gpu(on: Setup) -> int | None:
    return on.world.device.index or 0 if on.world.device.type == "cuda" else None


def _picked(arrays: dict[str, np.ndarray], names: Sequence[str]) -> tuple[np.ndarray, ...]:
    return tuple(arrays[name] for name in names)


def _copied(output: Any) -> list[Any]:
    """A batch of DALI's, of its own memory: on the CPU as NumPy arrays, on the GPU as tensors."""
    if type(output).__name__ == "TensorListCPU":
        return [np.array(output.at(place)) for place in range(len(output))]
    copies = [torch.from_dlpack(output[place]).clone() for place in range(len(output))]
    torch.cuda.synchronize()  # DALI takes its memory back when `output` goes
    return copies


def _program(name: str, pipe: Any, held: Held, device: torch.device) -> BatchProgram:
    def batches() -> Iterator[Batch]:
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        nothing = torch.empty(0)
        for labels in cycle(held.labels):
            output = pipe.run(stream)
            yield Batch(nothing, labels, nothing)
            del output

    return BatchProgram(name, batches(), next, device)


def build_libjpeg(on: Setup, held: Held) -> BatchProgram | None:
    """None where no batch is all JPEGs."""
    jpegs = [(views, labels) for views, labels in zip(held.views, held.labels, strict=True) if _are_jpegs(views)]
    if not jpegs:
        return None
    pool = ThreadPoolExecutor(on.threads)

    def batches() -> Iterator[Batch]:
        for views, labels in cycle(jpegs):
            for _ in pool.map(lambda view: simplejpeg.decode_jpeg(view, "RGB"), views):
                pass
            yield Batch(torch.empty(0), labels, labels)

    return BatchProgram("libjpeg-turbo", batches(), next, torch.device("cpu"), pool.shutdown)


def _are_jpegs(views: Sequence[np.ndarray]) -> bool:
    return all(view[: len(SOI)].tobytes() == SOI for view in views)


def build_communication(on: Setup, num_params: int) -> BatchProgram:
    """An all-reduce of float32 gradients: gloo on the CPU, NCCL on GPUs. Only for several ranks."""
    world: World = on.world
    buckets = torch.zeros(num_params, device=world.device).split(BUCKET_BYTES // 4)
    batch = Batch(torch.empty(0), torch.empty(on.batch_size), torch.empty(0))

    def exchange(taken: Iterator[Batch]) -> None:
        next(taken)
        for bucket in buckets:
            distributed.sum_tensor(bucket)

    return BatchProgram("communication", repeat(batch), exchange, world.device, tied=world)
