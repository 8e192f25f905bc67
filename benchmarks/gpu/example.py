"""DALI's ResNet-50 example as a loader, for comparison with the project's graph.

From NVIDIA/DALI, docs/examples/use_cases/pytorch/resnet50/main.py: `readers.file`, `image_random_crop` with its memory
hints, a triangular resize, and `crop_mirror_normalize` to CHW. It runs in float16, as the example does with
`--fp16-mode`. The example reads files, so the shards' images are written out first.
"""

import tarfile
from collections.abc import Iterator

import torch

from penstock.benchmarks.gpu.compare import compare
from penstock.benchmarks.gpu.data import originals
from penstock.benchmarks.gpu.stage import Job
from penstock.benchmarks.programs import BatchProgram
from penstock.pipeline.batch import Batch
from penstock.pipeline.build import threads_per_rank
from penstock.pipeline.config import DataConfig

WIDTH_HINT, HEIGHT_HINT = 5980, 6430  # from the example: ImageNet's largest images, for the decoder on the GPU


def dali_example(job: Job) -> None:
    """Time the batches of this project's graph and those of the example alternately, without training."""
    dataset, folder = originals(job), job.work / "files"
    split = dataset.split("train")
    for shard in range(len(split.shards)):
        with tarfile.open(split.shard_path(shard)) as tar:
            tar.extractall(folder, filter="data")
    paths = [str(path) for path in sorted(folder.iterdir()) if path.suffix != ".cls"]
    theirs = batches(paths, job.resnet().data, job.scale.batch_size, job.device)
    compare(job, "loader", {"ours": ()}, dataset, [BatchProgram("DALI's example", theirs, next, job.device)])


def batches(paths: list[str], config: DataConfig, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Yield the batches of the example's iterator without end.

    `images` are (N, 3, S, S) float16, contiguous. Every label is 0, since only the speed matters.
    """
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator

    on_gpu, side = device.type == "cuda", config.image_size
    pipe = Pipeline(batch_size=batch_size, num_threads=threads_per_rank(0, 1), seed=12,
                    device_id=device.index if on_gpu else None)  # fmt: skip
    with pipe:
        jpegs, label = fn.readers.file(files=paths, labels=[0] * len(paths), random_shuffle=True)
        images = fn.decoders.image_random_crop(
            jpegs, device="mixed" if on_gpu else "cpu", output_type=types.RGB, preallocate_width_hint=WIDTH_HINT,
            preallocate_height_hint=HEIGHT_HINT, random_aspect_ratio=[0.8, 1.25], random_area=[0.1, 1.0],
            num_attempts=100,
        )  # fmt: skip
        images = fn.resize(images, resize_x=side, resize_y=side, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT16 if on_gpu else types.FLOAT, output_layout="CHW", crop=(side, side),
            mean=list(config.mean), std=list(config.std), mirror=fn.random.coin_flip(probability=0.5),
        )  # fmt: skip
        pipe.set_outputs(images, label.gpu() if on_gpu else label)
    ids = torch.arange(batch_size)
    for (batch,) in DALIClassificationIterator(pipe):  # endless, since it gets no size
        yield Batch(batch["data"], batch["label"].squeeze(-1).long().to(device), ids)
