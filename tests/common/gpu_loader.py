"""The loader of the packed dataset on a GPU, or with the same settings on the CPU."""

from collections.abc import Callable
from typing import Any

import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.holes import BadSample
from penstock.pipeline.loader import DaliLoader
from penstock.shards.format import ShardSet
from tests.common.feeds import CROPS, make_feed

SIZES = {"image_size": 64, "val_image_size": 64, "val_resize_size": 73}


def make_loader(
    shard_set: ShardSet,
    device: str = "cuda",
    *,
    augment: AugmentConfig | None = CROPS,
    dtype: torch.dtype = torch.float16,
    batch_size: int = 12,
    on_bad: Callable[[BadSample], None] = lambda bad: None,
    **config: Any,
) -> DaliLoader:
    feed = make_feed(shard_set, augment=augment, batch_size=batch_size, **(SIZES | config))
    return DaliLoader(feed, device=torch.device(device), threads=2, dtype=dtype, on_bad=on_bad)
