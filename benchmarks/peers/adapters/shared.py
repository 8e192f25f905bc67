"""Code shared by several adapters."""

import random
from pathlib import Path
from types import SimpleNamespace


def shuffled_files(job: SimpleNamespace) -> list[tuple[Path, int]]:
    """List each JPEG and its label in random order, since formats that shuffle only locally must not start sorted."""
    paths = sorted(Path(job.folder).glob("*/*.jpg"))
    random.Random(0).shuffle(paths)
    return [(path, int(path.parent.name)) for path in paths]


def torchvision_transform(job: SimpleNamespace, pil: bool):
    """Return a transform that crops, flips and normalises. pil: the input is a PIL image, not a uint8 tensor."""
    import torch
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(job.image_size, antialias=True), v2.RandomHorizontalFlip()]
    to_tensor = [v2.PILToTensor()] if pil else []
    return v2.Compose([*steps, *to_tensor, v2.ToDtype(torch.float32), v2.Normalize(job.mean, job.std)])
