"""webdataset on the shards, decoding by PIL and torchvision's transforms; the pipeline of its ImageNet example."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torchvision.transforms import v2

SHUFFLED = 1000  # samples in the shuffle buffer, still encoded


def batches(job: Any) -> Iterator[np.ndarray]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(job.image_size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Normalize(job.mean, job.std),
        ]
    )
    dataset = (
        wds.WebDataset(job.shards, resampled=True, shardshuffle=False)
        .shuffle(SHUFFLED)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform)
        .batched(job.batch_size, partial=False)
    )
    for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=job.workers):
        yield images.numpy()
