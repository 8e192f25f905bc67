"""FFCV: its own file, its compiled decode-and-crop, threads. Options are those of its `RGBImageField`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from torchvision.datasets import ImageFolder


def prepare(job: Any) -> None:
    Path(job.prepared).mkdir(parents=True)
    fields = {"image": RGBImageField(**job.options), "label": IntField()}
    writer = DatasetWriter(f"{job.prepared}/train.beton", fields, num_workers=len(job.cores))
    writer.from_indexed_dataset(ImageFolder(job.folder))


def batches(job: Any) -> Iterator[np.ndarray]:
    size = (job.image_size, job.image_size)
    images = [
        RandomResizedCropRGBImageDecoder(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
        RandomHorizontalFlip(),
        NormalizeImage(np.array(job.mean), np.array(job.std), np.float32),
        ToTensor(),
        ToTorchImage(),
    ]
    loader = Loader(
        f"{job.prepared}/train.beton",
        job.batch_size,
        num_workers=job.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        indices=np.tile(np.arange(job.num_images), -(-job.epoch_images // job.num_images)),
        pipelines={"image": images, "label": [IntDecoder(), ToTensor()]},
    )
    while True:
        for batch in loader:
            yield batch[0].numpy()
