"""mosaicml-streaming: StreamingDataset of the unchanged JPEGs, decoded by PIL, with torchvision's transforms."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from adapters.shared import shuffled_files, torchvision_transform
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader


def prepare(job: SimpleNamespace) -> None:
    with MDSWriter(out=job.prepared, columns={"x": "jpeg", "y": "int"}) as writer:
        for path, label in shuffled_files(job):
            with Image.open(path) as image:
                writer.write({"x": image, "y": label})


class Images(StreamingDataset):
    def __init__(self, job: SimpleNamespace, **settings: object) -> None:
        super().__init__(shuffle=True, batch_size=job.batch_size, **settings)
        self.transform = torchvision_transform(job, pil=True)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(at)
        return self.transform(sample["x"].convert("RGB")), sample["y"]


def loader(job: SimpleNamespace) -> Iterator[list[torch.Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "data"  # a new name, since streaming refuses a folder that another process uses
        local.symlink_to(job.prepared)
        dataset = Images(job, local=str(local), epoch_size=job.num_images * job.repeats)
        options = {"drop_last": True, "persistent_workers": True}
        loader = DataLoader(dataset, job.batch_size, num_workers=job.workers, **options)
        while True:
            yield from loader
