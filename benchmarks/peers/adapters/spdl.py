"""SPDL: a pipeline of threads, in which FFmpeg decodes, crops, resizes and flips."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

ATTEMPTS = 10  # as torchvision's; then the whole image
AHEAD = 2  # batches

try:
    spdl.io.get_video_filter_desc()
    spdl.io.demux_config()  # loads the library that needs FFmpeg's
except RuntimeError as error:
    raise ImportError(f"FFmpeg's libraries are missing ({str(error)[:80]})") from None


def draw_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Width, height, left and top by torchvision's law."""
    for _ in range(ATTEMPTS):
        area = random.uniform(0.08, 1.0) * width * height
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return w, h, random.randint(0, width - w), random.randint(0, height - h)
    return width, height, 0, 0


def batches(job: Any) -> Iterator[np.ndarray]:
    torch.set_num_threads(1)  # the pipeline's threads are as many as were asked for
    paths = sorted(map(str, Path(job.folder).glob("*/*.jpg")))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (job.mean, job.std))

    def source() -> Iterator[str]:
        while True:
            yield from random.sample(paths, len(paths))

    def decode(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        w, h, left, top = draw_crop(packets.width, packets.height)
        steps = [
            f"crop={w}:{h}:{left}:{top}:exact=1",
            f"scale={job.image_size}:{job.image_size}:flags=bilinear",
            "format=pix_fmts=rgb24",
            *(["hflip"] if random.random() < 0.5 else []),
        ]
        return spdl.io.decode_packets(packets, filter_desc=",".join(steps))

    def collate(frames: list[Any]) -> torch.Tensor:
        pixels = torch.from_numpy(spdl.io.to_numpy(spdl.io.convert_frames(frames)))  # (N, S, S, 3) uint8
        return pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(mean).div_(std)

    pipeline = (
        PipelineBuilder()
        .add_source(source())
        .pipe(decode, concurrency=job.workers)
        .aggregate(job.batch_size)
        .pipe(collate)
        .add_sink(AHEAD)
        .build(num_threads=job.workers)
    )
    with pipeline.auto_stop():
        for images in pipeline:
            yield images.numpy()
