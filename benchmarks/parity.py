"""Compare images of `DaliLoader` with those of `ReferenceLoader` (PIL, torchvision), for `bench.py parity`.

Input: a recipe and a packed dataset. Both loaders follow the same plan. Output: differences in grey levels for each
split, and pictures of the worst images.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from penstock.benchmarks.options import BenchSetup
from penstock.benchmarks.text import tabulated
from penstock.pipeline.build import build_loader
from penstock.pipeline.feed import Feed
from penstock.recipes import Recipe
from penstock.shards.format import Split

BIN = 1 / 16  # grey levels; the percentile is read from a histogram
MAX_BATCH = 50
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Difference:
    """The difference between DALI's images of one split, made on `device`, and the reference's.

    mean, p99, max: of the absolute difference per pixel and channel, in grey levels 0–255. worst_mean: the mean of the
    image with the largest mean. worst_image: the source name of that image.
    """

    split: str
    device: str
    num_images: int
    mean: float
    p99: float
    max: float
    worst_mean: float
    worst_image: str
    picture: str


def feed_of(recipe: Recipe, split: Split, training: bool, num_images: int, max_batch: int = MAX_BATCH) -> Feed:
    """Return a feed of the first rows of a split, in equal batches of at most `max_batch`."""
    num_images = min(num_images, len(split))
    batch_size = next(size for size in range(min(max_batch, num_images), 0, -1) if num_images % size == 0)
    return Feed(
        split=replace(split, samples=split.samples[:num_images]),
        config=recipe.data,
        augment=recipe.augment if training else None,
        batch_size=batch_size,
        global_batch_size=batch_size,
        seed=recipe.train.seed,
    )


def both(feed: Feed, device: torch.device, threads: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield DALI's and the reference's images of epoch 0, batch by batch, and the sample ids.

    Images are (n, 3, S, S) in grey levels, on the CPU. They are float32 even if made on the GPU, so that only decoding
    and resampling are compared.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (feed.config.mean, feed.config.std))
    dali, reference = (replace(feed, config=replace(feed.config, loader=name)) for name in ("dali", "reference"))
    with (
        closing(build_loader(dali, device=device, threads=threads)) as ours,
        closing(build_loader(reference, device=CPU, threads=threads)) as theirs,
    ):
        for a, b in zip(ours.iter_epoch(0), theirs.iter_epoch(0), strict=True):
            if not torch.equal(a.sample_ids, b.sample_ids):
                raise RuntimeError("the two loaders give different samples")
            yield a.images.cpu().float() * std + mean, b.images.float() * std + mean, a.sample_ids


def compare(feed: Feed, device: torch.device, threads: int, out: Path) -> Difference:
    """Compare one split, and write a picture of the worst image to `out`.

    The picture shows DALI's image, the reference's, and eight times the difference, side by side.
    """
    histogram = np.zeros(round(256 / BIN) + 1, np.int64)
    total, largest, num_images, worst = 0.0, 0.0, 0, (-1.0, -1)
    panels = torch.empty(0)
    for ours, theirs, sample_ids in both(feed, device, threads):
        difference = (ours - theirs).abs()
        bins = (difference / BIN).round().clamp_(max=len(histogram) - 1).to(torch.int64)
        histogram += np.bincount(bins.flatten().numpy(), minlength=len(histogram))
        total += float(difference.sum(dtype=torch.float64))
        largest = max(largest, float(difference.max()))
        num_images += len(ours)
        means = difference.mean(dim=(1, 2, 3))
        row = int(means.argmax())
        if float(means[row]) > worst[0]:
            worst = float(means[row]), int(sample_ids[row])
            panels = torch.cat([ours[row], theirs[row], 8 * difference[row]], dim=2)
    kind = "training" if feed.augment else "validation"
    picture = f"{kind}-{device.type}.png"
    pixels = panels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(out / picture)
    return Difference(
        split=kind,
        device=device.type,
        num_images=num_images,
        mean=total / int(histogram.sum()),
        p99=float(np.searchsorted(histogram.cumsum(), 0.99 * histogram.sum())) * BIN,
        max=largest,
        worst_mean=worst[0],
        worst_image=feed.split.source_name(worst[1]),
        picture=picture,
    )


def compare_all(setup: BenchSetup, num_images: int, max_batch: int | None, out: Path) -> list[Difference]:
    """Compare training and validation images, made on the CPU and on the GPU if any. Pictures go to `out`."""
    data = setup.recipe.data
    feeds = [
        feed_of(setup.recipe, setup.dataset.split(split), training, num_images, max_batch or MAX_BATCH)
        for training, split in ((True, data.train_split), (False, data.val_split))
    ]
    out.mkdir(parents=True, exist_ok=True)
    devices = dict.fromkeys((CPU, setup.world.device))
    return [compare(feed, device, setup.threads, out) for feed in feeds for device in devices]


def table(differences: list[Difference]) -> list[str]:
    """Return the lines of a table, one row per difference. `worst` is the mean of the worst image."""
    rows = [("split", "picture", "device", "images", "mean", "99% ≤", "max", "worst")]
    for d in differences:
        figures = f"{d.mean:.3f}", f"{d.p99:.2f}", f"{d.max:.1f}", f"{d.worst_mean:.3f}"
        rows.append((d.split, d.picture, d.device, str(d.num_images), *figures))
    return tabulated(rows, 3)
