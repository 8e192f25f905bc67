"""FFCV: its own file, its compiled decode-and-crop, threads. Options are those of its `RGBImageField`."""

from types import SimpleNamespace

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from torchvision.datasets import ImageFolder


def prepare(job: SimpleNamespace) -> None:
    fields = {"image": RGBImageField(**job.options), "label": IntField()}
    writer = DatasetWriter(f"{job.prepared}/train.beton", fields, num_workers=len(job.cores))
    writer.from_indexed_dataset(ImageFolder(job.folder))


def loader(job: SimpleNamespace) -> Loader:
    crop = RandomResizedCropRGBImageDecoder((job.image_size, job.image_size), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    normalize = NormalizeImage(np.array(job.mean), np.array(job.std), np.float32)
    image = [crop, RandomHorizontalFlip(), normalize, ToTensor(), ToTorchImage()]
    return Loader(
        f"{job.prepared}/train.beton", job.batch_size, num_workers=job.workers, order=OrderOption.RANDOM, os_cache=True,
        drop_last=True, indices=np.tile(np.arange(job.num_images), job.repeats),
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
