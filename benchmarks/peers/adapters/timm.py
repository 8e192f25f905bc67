"""timm's `create_dataset` and `create_loader`, with crop and flip only. Its prefetcher normalises whole batches in the
main process."""

from types import SimpleNamespace

import torch
from timm.data import ImageDataset, create_loader
from timm.data.loader import PrefetchLoader


def loader(job: SimpleNamespace) -> PrefetchLoader:
    dataset = ImageDataset(job.folder)
    dataset.reader.samples = dataset.reader.samples * job.repeats
    mean, std = (tuple(value / 255 for value in values) for values in (job.mean, job.std))
    return create_loader(
        dataset, job.image_size, job.batch_size, is_training=True, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3),
        color_jitter=0.0, interpolation="bilinear", mean=mean, std=std, num_workers=job.workers,
        device=torch.device("cpu"),
    )  # fmt: skip
