"""litdata: StreamingDataset of the unchanged JPEGs, decoded to uint8 tensors, with torchvision's v2 transforms."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from adapters.shared import shuffled_files, torchvision_transform
from litdata import StreamingDataset, optimize
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset


def read(file: tuple[Path, int]) -> dict[str, Image.Image | int]:
    return {"image": Image.open(file[0]), "label": file[1]}


def prepare(job: SimpleNamespace) -> None:
    files, cores = shuffled_files(job), len(job.cores)
    optimize(read, files, job.prepared, chunk_bytes="64MB", num_workers=cores, start_method="fork")


class Endless(IterableDataset):
    """The dataset, repeated without end. A small dataset's epoch would end before the workers are busy."""

    def __init__(self, job: SimpleNamespace) -> None:
        self.dataset = StreamingDataset(job.prepared, shuffle=True)
        self.transform = torchvision_transform(job, pil=False)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        while True:
            for sample in self.dataset:
                yield self.transform(sample["image"]), sample["label"]


def loader(job: SimpleNamespace) -> DataLoader:
    return DataLoader(Endless(job), job.batch_size, num_workers=job.workers)
