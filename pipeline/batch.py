"""What a loader yields, and what every loader is."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from pipeline.feed import Feed


class Batch(NamedTuple):
    """One batch of one rank.

    images: (N, 3, S, S) float32 or float16, normalised, channels_last in memory, on the training device.
    labels: (N,) int64 on the training device; `holes.IGNORE_LABEL` where a bad sample was taken out.
    sample_ids: (N,) int64 on the CPU, rows of the sample table; `holes.NO_SAMPLE` where one was taken out.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor


class Loader(Protocol):
    """`DaliLoader`, `ReferenceLoader` and `SyntheticLoader` all have this shape."""

    feed: Feed
    quarantine: set[int]  # samples known to be bad; they are left out from the next `iter_epoch` on

    @property
    def state(self) -> tuple[int, int]:
        """(epoch, position) after the batch last yielded: what a resume needs. Positions count the samples
        of all ranks from the start of the epoch."""

    def __len__(self) -> int:
        """Batches this rank yields in a whole epoch."""

    def iter_epoch(self, epoch: int, position: int = 0, image_size: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch from a position on."""

    def close(self) -> None:
        """Release threads, memory maps and device memory. A second call does nothing."""
