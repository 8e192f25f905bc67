"""DALI's ResNet-50 example as a loader: what the project's graph is held against.

NVIDIA/DALI, docs/examples/use_cases/pytorch/resnet50/main.py: `readers.file`, `image_random_crop` with its hints for
memory, a triangular resize, `crop_mirror_normalize` to CHW, here in float16, which the example does with `--fp16-mode`.
It reads files, so the shards' images are written out first.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.batch import Batch
from pipeline.config import DataConfig
from shards.format import Split

WIDTH_HINT, HEIGHT_HINT = 5980, 6430  # the example's, of ImageNet's largest images; for the decoder on the GPU


def write_files(split: Split, folder: Path) -> tuple[list[str], list[int]]:
    """The split's images as files in `folder`: their paths and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[str] = []
    labels: list[int] = []
    for shard in range(len(split.shards)):
        tar = split.shard_path(shard).read_bytes()
        for row in split.samples[split.samples["shard"] == shard]:
            path = folder / f"{len(paths):08d}.jpg"
            path.write_bytes(tar[int(row["offset"]) : int(row["offset"]) + int(row["size"])])
            paths.append(str(path))
            labels.append(int(row["label"]))
    return paths, labels


def batches(
    paths: list[str], labels: list[int], config: DataConfig, *, batch_size: int, threads: int, device: torch.device,
    whole: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """Batches without end, as the example's iterator gives them; `images` (N, 3, S, S) float16, contiguous.

    whole: decode the image and crop while resizing, in place of `image_random_crop`."""
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator, LastBatchPolicy

    on_gpu = device.type == "cuda"
    hints: dict[str, Any] = (
        {"preallocate_width_hint": WIDTH_HINT, "preallocate_height_hint": HEIGHT_HINT} if on_gpu else {}
    )
    window: dict[str, Any] = {"random_aspect_ratio": [0.8, 1.25], "random_area": [0.1, 1.0], "num_attempts": 100}
    decoder: dict[str, Any] = {"device": "mixed" if on_gpu else "cpu", "output_type": types.RGB, **hints}
    side = config.image_size
    pipe = Pipeline(batch_size=batch_size, num_threads=threads, device_id=device.index if on_gpu else None, seed=12)
    with pipe:
        jpegs, label = fn.readers.file(
            files=paths, labels=labels, random_shuffle=True, pad_last_batch=True, name="Reader"
        )
        if whole:
            images = fn.random_resized_crop(fn.decoders.image(jpegs, **decoder), size=side, **window)
        else:
            images = fn.decoders.image_random_crop(jpegs, **decoder, **window)
            images = fn.resize(images, resize_x=side, resize_y=side, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT16 if on_gpu else types.FLOAT, output_layout="CHW", crop=(side, side),
            mean=list(config.mean), std=list(config.std), mirror=fn.random.coin_flip(probability=0.5),
        )  # fmt: skip
        pipe.set_outputs(images, label.gpu() if on_gpu else label)
    ids = torch.arange(batch_size)
    while True:
        iterator = DALIClassificationIterator(
            pipe, reader_name="Reader", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
        )
        while True:
            for (batch,) in iterator:
                yield Batch(batch["data"], batch["label"].squeeze(-1).long().to(device), ids)
