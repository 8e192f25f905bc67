"""What several adapters do alike."""

import random
from pathlib import Path
from types import SimpleNamespace


def shuffled_files(job: SimpleNamespace) -> list[tuple[Path, int]]:
    """Each JPEG and its label, in random order: formats that shuffle nearby samples only must not begin by class."""
    paths = sorted(Path(job.folder).glob("*/*.jpg"))
    random.Random(0).shuffle(paths)
    return [(path, int(path.parent.name)) for path in paths]


def torchvision_transform(job: SimpleNamespace, pil: bool):
    """Crop, flip and normalise. pil: its input is PIL's, not a uint8 tensor."""
    import torch
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(job.image_size, antialias=True), v2.RandomHorizontalFlip()]
    to_tensor = [v2.PILToTensor()] if pil else []
    return v2.Compose([*steps, *to_tensor, v2.ToDtype(torch.float32), v2.Normalize(job.mean, job.std)])
