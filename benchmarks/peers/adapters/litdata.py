"""litdata's StreamingDataset of the JPEGs as they are, which it decodes to uint8 tensors; torchvision's v2 on those."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import StreamingDataset, optimize
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2

CHUNK_BYTES = "64MB"


def read(path: str) -> dict[str, Any]:
    return {"image": Image.open(path), "label": int(Path(path).parent.name)}


def prepare(job: Any) -> None:
    paths = sorted(map(str, Path(job.folder).glob("*/*.jpg")))
    random.Random(0).shuffle(paths)  # it shuffles within chunks, which must not be of one class
    optimize(read, paths, job.prepared, chunk_bytes=CHUNK_BYTES, num_workers=len(job.cores), start_method="fork")


class Endless(IterableDataset[torch.Tensor]):
    """The dataset again and again: a small one's epochs would end before the workers are busy."""

    def __init__(self, dataset: StreamingDataset, transform: Any) -> None:
        self.dataset, self.transform = dataset, transform

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            for sample in self.dataset:
                yield self.transform(sample["image"]), sample["label"]


def batches(job: Any) -> Iterator[np.ndarray]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(job.image_size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32),
            v2.Normalize(job.mean, job.std),
        ]
    )
    dataset = Endless(StreamingDataset(job.prepared, shuffle=True), transform)
    for images, _ in DataLoader(dataset, job.batch_size, num_workers=job.workers):
        yield images.numpy()
