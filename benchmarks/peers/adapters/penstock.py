"""This project's loader, on its shards. The one adapter that imports the project: it runs in its environment."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np


def batches(job: Any) -> Iterator[np.ndarray]:
    sys.path.insert(0, job.root)
    import torch

    from pipeline.augment import AugmentConfig
    from pipeline.build import build_loader
    from pipeline.config import DataConfig
    from pipeline.feed import Feed
    from shards.format import ShardSet

    split = ShardSet.open(job.dataset).split(job.split)
    feed = Feed(
        split=replace(split, samples=np.tile(split.samples, -(-job.epoch_images // len(split)))),
        config=DataConfig(image_size=job.image_size),
        augment=AugmentConfig(),
        batch_size=job.batch_size,
        global_batch_size=job.batch_size,
    )
    loader = build_loader(feed, device=torch.device("cpu"), threads=job.workers)
    epoch = 0
    while True:
        for batch in loader.iter_epoch(epoch):
            yield batch.images.numpy()
        epoch += 1
