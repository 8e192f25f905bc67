"""`SyntheticLoader`: one random batch on the device, repeated. Shows the speed of training without a data pipeline."""

from collections.abc import Iterator

import numpy as np
import torch

from penstock.pipeline import ranges
from penstock.pipeline.batch import Batch
from penstock.pipeline.feed import Feed


class SyntheticLoader:
    """The feed's steps, sizes, labels and ids, with pixels drawn once. See `pipeline.batch.Loader` for the contract."""

    def __init__(self, feed: Feed, *, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.feed, self.device, self.dtype = feed, device, dtype
        self.quarantine: set[int] = set()
        self._images: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.feed)

    def iter_epoch(self, epoch: int, position: int = 0) -> Iterator[Batch]:
        if self._images is None:
            generator, size = torch.Generator().manual_seed(self.feed.seed), self.feed.image_size
            images = torch.randn(self.feed.batch_size, 3, size, size, generator=generator)
            self._images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        for span in self.feed.spans(position):
            sample_ids = self.feed.sample_ids(epoch, [span])
            labels = torch.from_numpy(self.feed.split.samples["label"][sample_ids].astype(np.int64))
            with ranges.span("copy"):
                labels = labels.to(self.device, non_blocking=True)
            yield Batch(self._images[: span.count], labels, torch.from_numpy(sample_ids), epoch, span.end)

    def close(self) -> None:
        self._images = None
