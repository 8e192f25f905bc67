"""mosaicml-streaming's StreamingDataset of the JPEGs as they are, decoded by PIL, with torchvision's transforms."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader
from torchvision.transforms import v2


def prepare(job: Any) -> None:
    paths = sorted(Path(job.folder).glob("*/*.jpg"))
    random.Random(0).shuffle(paths)  # it shuffles within blocks of shards
    with MDSWriter(out=job.prepared, columns={"x": "jpeg", "y": "int"}) as writer:
        for path in paths:
            with Image.open(path) as image:
                writer.write({"x": image, "y": int(path.parent.name)})


class Images(StreamingDataset):
    def __init__(self, transform: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.transform = transform

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(at)
        return self.transform(sample["x"].convert("RGB")), sample["y"]


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
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "data"  # it refuses a folder that another process uses, by name
        local.symlink_to(job.prepared)
        dataset = Images(
            transform,
            local=str(local),
            shuffle=True,
            batch_size=job.batch_size,
            epoch_size=max(job.num_images, job.epoch_images),
        )
        loader = DataLoader(dataset, job.batch_size, drop_last=True, num_workers=job.workers, persistent_workers=True)
        while True:
            for images, _ in loader:
                yield images.numpy()
