"""torchvision's ImageFolder and torch's DataLoader, as in torchvision's reference scripts.

`decode` "pil": Pillow decodes, crops and resizes. "tensor": `decode_image` makes a uint8 tensor, on which v2 works.
"""

from types import SimpleNamespace

import torch
from adapters.shared import torchvision_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image, read_file


def read_tensor(path: str) -> torch.Tensor:
    return decode_image(read_file(path), ImageReadMode.RGB)


def loader(job: SimpleNamespace) -> DataLoader:
    pil = job.options["decode"] == "pil"
    dataset = ImageFolder(job.folder, torchvision_transform(job, pil), loader=default_loader if pil else read_tensor)
    dataset.samples = dataset.samples * job.repeats
    options = {"shuffle": True, "drop_last": True, "persistent_workers": True}
    return DataLoader(dataset, job.batch_size, num_workers=job.workers, **options)
