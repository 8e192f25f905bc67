"""torchvision's ImageFolder and torch's DataLoader, as in torchvision's reference scripts.

`decode` "pil": Pillow decodes, crops and resizes. "tensor": `decode_image` makes a uint8 tensor, on which v2 works.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2


def read_tensor(path: str) -> torch.Tensor:
    return decode_image(read_file(path), ImageReadMode.RGB)


def batches(job: Any) -> Iterator[np.ndarray]:
    pil = job.options["decode"] == "pil"
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(job.image_size, antialias=True),
            v2.RandomHorizontalFlip(),
            *([v2.PILToTensor()] if pil else []),
            v2.ToDtype(torch.float32),
            v2.Normalize(job.mean, job.std),
        ]
    )
    dataset = ImageFolder(job.folder, transform, loader=default_loader if pil else read_tensor)
    dataset.samples = dataset.samples * -(-job.epoch_images // len(dataset.samples))
    loader = DataLoader(
        dataset, job.batch_size, shuffle=True, drop_last=True, num_workers=job.workers, persistent_workers=True
    )
    while True:
        for images, _ in loader:
            yield images.numpy()
