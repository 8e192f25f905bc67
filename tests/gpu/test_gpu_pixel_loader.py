"""`PixelLoader` on a GPU and on the CPU: the CPU resizes in the first epoch, then the GPU has the images."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Loader
from penstock.pipeline.build import build_loader
from penstock.pipeline.feed import Feed
from penstock.pipeline.holes import IGNORE_LABEL, NO_SAMPLE
from penstock.pipeline.pixel_loader import PixelLoader
from penstock.shards.format import ShardSet
from tests.common.feeds import CPU, CROPS, JITTER, gray_levels, make_feed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "augment", [CROPS, JITTER, AugmentConfig(crop="pad", pad=2), None], ids=["crops", "jitter", "pad", "validation"]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_gpu_makes_the_cpus_batches(dataset: ShardSet, augment: AugmentConfig | None, dtype: torch.dtype) -> None:
    feed = make_feed(dataset, augment=augment, cache="pixels")
    with (
        closing(PixelLoader(feed, device=GPU, threads=2, dtype=dtype)) as gpu,
        closing(PixelLoader(feed, device=CPU, threads=2)) as cpu,
    ):
        for epoch in range(3):
            for ours, theirs in zip(gpu.iter_epoch(epoch), cpu.iter_epoch(epoch), strict=True):
                assert ours.images.device.type == ours.labels.device.type == "cuda"
                assert ours.images.dtype == dtype
                assert ours.images.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(ours.sample_ids, theirs.sample_ids)
                assert torch.equal(ours.labels.cpu(), theirs.labels)
                apart = gray_levels(ours.images.cpu(), feed.config) - gray_levels(theirs.images, feed.config)
                assert apart.abs().mean() < 0.5
                assert augment is JITTER or apart.abs().max() < 1.3  # a level, and the rounding of half precision
        assert (gpu._there is not None) == (augment is not JITTER)


def test_batches_stay_what_they_are(dataset: ShardSet) -> None:
    with closing(PixelLoader(make_feed(dataset, cache="pixels"), device=GPU, threads=2)) as loader:
        for epoch in range(3):
            held = list(loader.iter_epoch(epoch))
            copies = [batch.images.clone() for batch in held]
            again = list(loader.iter_epoch(epoch))
            assert all(torch.equal(batch.images, copy) for batch, copy in zip(held, copies, strict=True))
            if epoch:
                assert all(torch.equal(a.images, b.images) for a, b in zip(held, again, strict=True))


def test_a_bad_sample_on_the_gpu(dataset_copy: Path, damage: Callable[[ShardSet, str, int, bytes], None]) -> None:
    shard_set = ShardSet.open(dataset_copy)
    feed = make_feed(shard_set, cache="pixels")
    bad = int(feed.plan(0).sample_ids(0, 1)[0])
    damage(shard_set, "train", bad, b"")
    with closing(PixelLoader(feed, device=GPU, threads=2)) as loader:
        for epoch in range(3):
            for batch in loader.iter_epoch(epoch):
                holes = batch.sample_ids == NO_SAMPLE
                assert bad not in batch.sample_ids.tolist()
                assert torch.equal(holes, batch.labels.cpu() == IGNORE_LABEL)
                assert all(batch.images[place].abs().max() < 0.05 for place in holes.nonzero().flatten().tolist())
        assert loader.quarantine == {bad}


@pytest.mark.parametrize("gpu_decode", ["off", "whole", "region"])
@pytest.mark.parametrize("augment", [CROPS, JITTER, None], ids=["crops", "jitter", "validation"])
def test_shards_with_pixels(
    dataset: ShardSet, mixed_dir: Path, augment: AugmentConfig | None, gpu_decode: Literal["off", "whole", "region"]
) -> None:
    """Half of the images are stored as pixels. If the GPU decodes, DALI reads them; otherwise the kernel does."""
    with (
        closing(build(make_feed(ShardSet.open(mixed_dir), augment=augment, gpu_decode=gpu_decode), GPU)) as gpu,
        closing(build(make_feed(dataset, augment=augment), CPU)) as cpu,
    ):
        assert isinstance(gpu, PixelLoader) == (gpu_decode == "off")
        for epoch in range(2):
            for ours, theirs in zip(gpu.iter_epoch(epoch), cpu.iter_epoch(epoch), strict=True):
                assert ours.images.device.type == "cuda"
                assert torch.equal(ours.sample_ids, theirs.sample_ids)
                apart = gray_levels(ours.images.cpu(), make_feed(dataset).config)
                apart -= gray_levels(theirs.images, make_feed(dataset).config)
                assert apart.abs().mean() < 1.5


def build(feed: Feed, device: torch.device) -> Loader:
    return build_loader(feed, device=device, threads=2)
