"""Feeds of a dataset at a URL, and their output."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.shards.format import ShardSet

CONFIG = DataConfig(
    image_size=32, val_image_size=32, val_resize_size=36, block_size=4, window_blocks=2, fetch_bytes=40_000,
    store_timeout_s=20,
)  # fmt: skip


def feed_of(shard_set: ShardSet, tmp_path: Path, split: str = "train", **settings: Any) -> Feed:
    share = {name: settings.pop(name) for name in ("rank", "world_size", "local_world_size") if name in settings}
    cache_dir = settings.pop("cache_dir", str(tmp_path / "cache"))
    config = replace(CONFIG, cache_dir=cache_dir, **settings)
    augment = AugmentConfig() if split == "train" else None
    size = {"batch_size": 3, "global_batch_size": 3 * share.get("world_size", 1)}
    return Feed(split=shard_set.split(split), config=config, augment=augment, **size, **share)


def small(shard_set: ShardSet) -> int:
    """A cache that is too small for the dataset."""
    return shard_set.split("train").dataset_bytes - 1


def epochs(loader: Any, num: int) -> list[tuple[list[int], float]]:
    seen = [(b.sample_ids.tolist(), b.images.double().sum().item()) for e in range(num) for b in loader.iter_epoch(e)]
    loader.close()
    return seen
