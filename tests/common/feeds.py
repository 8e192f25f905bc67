"""Feeds and loaders of the packed dataset, and their output by position."""

from collections.abc import Iterator
from typing import Any

import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.build import takes_pixels
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.pixel_loader import PixelLoader
from penstock.shards.format import ShardSet

CPU = torch.device("cpu")
CROPS = AugmentConfig()
JITTER = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
SIZE = 40
EVERY: dict[str, Any] = {}  # of [data], that every feed has besides what it is given


def make_feed(
    shard_set: ShardSet,
    *,
    augment: AugmentConfig | None = CROPS,
    batch_size: int = 12,
    world_size: int = 1,
    rank: int = 0,
    seed: int = 3,
    **config: Any,
) -> Feed:
    """A training feed with a global batch of 24, or with `augment=None` the validation feed."""
    settings = (
        {"image_size": SIZE, "val_image_size": SIZE, "val_resize_size": 46, "max_bad_fraction": 0.5} | EVERY | config
    )
    return Feed(
        split=shard_set.split("train" if augment else "val"),
        config=DataConfig(**settings),
        augment=augment,
        batch_size=batch_size,
        global_batch_size=24 if augment else 0,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )


def make_loader(shard_set: ShardSet, *, threads: int = 2, **feed: Any) -> DaliLoader | PixelLoader:
    return loader_of(make_feed(shard_set, **feed), threads=threads)


def loader_of(feed: Feed, *, threads: int = 2, **more: Any) -> DaliLoader | PixelLoader:
    """The loader of `data.loader = "dali"` on the CPU."""
    make = PixelLoader if takes_pixels(feed, CPU) else DaliLoader
    return make(feed, device=CPU, threads=threads, **more)


def gray_levels(images: torch.Tensor, config: DataConfig) -> torch.Tensor:
    """Normalised images back to 0…255."""
    return images.float() * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None]


def by_position(batches: Iterator[Batch], feed: Feed, position: int = 0) -> dict[int, tuple[int, int, torch.Tensor]]:
    """Position → sample id, label, image."""
    rows = {}
    for span, batch in zip(feed.spans(position), batches, strict=True):
        assert len(batch.images) == span.count
        assert batch.position == span.end
        for row in range(span.count):
            rows[span.start + row] = (int(batch.sample_ids[row]), int(batch.labels[row]), batch.images[row])
    return rows


def same_rows(a: dict[int, tuple[int, int, torch.Tensor]], b: dict[int, tuple[int, int, torch.Tensor]]) -> bool:
    return a.keys() == b.keys() and all(a[p][:2] == b[p][:2] and torch.equal(a[p][2], b[p][2]) for p in a)
