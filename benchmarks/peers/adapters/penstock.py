"""This project's loader, on its shards. Only this adapter imports the project, since it runs in its environment."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np


def loader(job: SimpleNamespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    sys.path.insert(0, job.root)
    import torch

    from penstock.pipeline.augment import AugmentConfig
    from penstock.pipeline.build import build_loader
    from penstock.pipeline.config import DataConfig
    from penstock.pipeline.feed import Feed
    from penstock.pipeline.pixel_loader import PixelLoader
    from penstock.shards.format import ShardSet

    split, size = ShardSet.open(job.dataset).split("train"), job.batch_size
    split = replace(split, samples=np.tile(split.samples, job.repeats))
    config = DataConfig(image_size=job.image_size, **job.options)
    feed = Feed(split=split, config=config, augment=AugmentConfig(), batch_size=size, global_batch_size=size)
    batches = build_loader(feed, device=torch.device("cpu"), threads=job.workers)
    if isinstance(batches, PixelLoader):
        batches.load()
    for epoch in count():
        for batch in batches.iter_epoch(epoch):
            yield batch.images.numpy(), batch.labels.numpy()
