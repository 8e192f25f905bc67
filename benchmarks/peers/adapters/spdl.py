"""SPDL: a pipeline of threads, in which FFmpeg decodes, crops, resizes and flips."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import spdl.io
import torch
from adapters.shared import shuffled_files
from spdl.pipeline import PipelineBuilder

try:
    spdl.io.get_video_filter_desc()
    spdl.io.demux_config()  # loads the library that needs FFmpeg's libraries
except RuntimeError as error:
    raise ImportError(f"FFmpeg's libraries are missing ({str(error)[:80]})") from None


def draw_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw width, height, left and top from torchvision's distribution."""
    for _ in range(10):  # after ten failed attempts, use the whole image
        area = random.uniform(0.08, 1.0) * width * height
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return w, h, random.randint(0, width - w), random.randint(0, height - h)
    return width, height, 0, 0


def loader(job: SimpleNamespace) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    torch.set_num_threads(1)  # the pipeline has its own threads, as many as requested
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (job.mean, job.std))
    files = shuffled_files(job)

    def source() -> Iterator[tuple[Path, int]]:
        while True:
            yield from random.sample(files, len(files))

    def decode(file: tuple[Path, int]) -> tuple[object, int]:
        packets = spdl.io.demux_image(str(file[0]))
        w, h, left, top = draw_crop(packets.width, packets.height)
        steps = f"crop={w}:{h}:{left}:{top}:exact=1,scale={job.image_size}:{job.image_size}:flags=bilinear"
        flip = ",hflip" if random.random() < 0.5 else ""
        return spdl.io.decode_packets(packets, filter_desc=f"{steps},format=pix_fmts=rgb24{flip}"), file[1]

    def collate(samples: list[tuple[object, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        frames, labels = zip(*samples, strict=True)
        pixels = torch.from_numpy(spdl.io.to_numpy(spdl.io.convert_frames(list(frames))))  # (N, S, S, 3) uint8
        return pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(mean).div_(std), torch.tensor(labels)

    builder = PipelineBuilder().add_source(source()).pipe(decode, concurrency=job.workers).aggregate(job.batch_size)
    pipeline = builder.pipe(collate).add_sink(2).build(num_threads=job.workers)
    with pipeline.auto_stop():
        yield from pipeline
