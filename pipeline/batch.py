"""`Batch`, which a loader yields, and `Loader`, the interface of all loaders."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from penstock.pipeline.feed import Feed


@dataclass
class Batch:
    """One batch of one rank. It unpacks into its first three fields: `images, labels, sample_ids = batch`.

    images: (N, 3, S, S) float32 or float16, normalised, channels_last in memory, on the training device.
    labels: (N,) int64 on the training device; `holes.IGNORE_LABEL` for a quarantined sample. After mixup or CutMix
        (N, C) float32, the share of each class.
    sample_ids: (N,) int64 on the CPU, rows of the sample table; `holes.NO_SAMPLE` for a quarantined sample.
    epoch, position: the state of training after this batch, from which a run resumes. A position counts the samples of
        all ranks from the start of the epoch.

    The class is not frozen, since Lightning converts the tensors of a copy in place.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    epoch: int = 0
    position: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels, self.sample_ids))

    def __getitem__(self, place: int) -> Tensor:
        return (self.images, self.labels, self.sample_ids)[place]

    def __len__(self) -> int:
        return 3

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with images and labels on `device`, where they usually are already. The ids stay on the CPU."""
        images, labels = (one.to(device, non_blocking=non_blocking) for one in (self.images, self.labels))
        return replace(self, images=images, labels=labels)


class Loader(Protocol):
    """The interface of `DaliLoader`, `PixelLoader`, `ReferenceLoader` and `SyntheticLoader`."""

    feed: Feed
    quarantine: set[int]  # samples known to be bad; they are skipped from the next `iter_epoch` on

    def __len__(self) -> int:
        """The number of batches that this rank yields in a whole epoch."""

    def iter_epoch(self, epoch: int, position: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from a position on."""

    def close(self) -> None:
        """Release threads, memory maps and device memory. A second call does nothing."""
