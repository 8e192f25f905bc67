"""What `bench.py parity` compares: images of `DaliLoader` with `ReferenceLoader`'s (PIL, torchvision), same plan.

Input: a recipe and a packed dataset. Output: differences in grey levels for each split, a picture of the worst image of
each, and how often a checkpoint's network gives the same top-1 on both loaders' images.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.options import Setup
from benchmarks.text import tabulated, wrapped
from commands.load import load_network
from pipeline.build import build_loader
from pipeline.feed import Feed
from recipes import Recipe
from shards.format import ShardSet, Split

BIN = 1 / 16  # grey levels; the percentile is read from a histogram
MAX_BATCH = 50


class Program(NamedTuple):
    """A loader, as in data.loader, and where it runs."""

    loader: Literal["dali", "reference"]
    device: torch.device

    @property
    def name(self) -> str:
        return self.loader if self.loader == "reference" else f"{self.loader}-{self.device.type}"


@dataclass(frozen=True)
class Difference:
    """Two programs' images of one split.

    mean, p99, max: of the absolute difference of a pixel's channel, in grey levels 0–255. worst_mean: the mean of the
    worst image, whose source is worst_image. top1_agreement: the share of images with the same top-1, where a network
    was asked.
    """

    split: str
    programs: str
    num_images: int
    mean: float
    p99: float
    max: float
    worst_mean: float
    worst_image: str
    picture: str
    top1_agreement: float | None


def pairs_on(device: torch.device) -> list[tuple[Program, Program]]:
    """The pairs to compare: the CPU with the reference; on a GPU also the GPU with the reference, and with the CPU."""
    cpu, reference = Program("dali", torch.device("cpu")), Program("reference", torch.device("cpu"))
    if device.type == "cpu":
        return [(cpu, reference)]
    return [(cpu, reference), (Program("dali", device), reference), (Program("dali", device), cpu)]


def feed_of(recipe: Recipe, split: Split, training: bool, num_images: int, max_batch: int = MAX_BATCH) -> Feed:
    """The first rows of a split, in batches of at most `max_batch` that leave none over."""
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


def both(feed: Feed, ours: Program, theirs: Program, threads: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The two programs' images of epoch 0, batch by batch, on the CPU: (n, 3, S, S) normalised, and the sample ids.

    In float32, also on the GPU: what is compared is decoding and resampling.
    """
    feeds = [replace(feed, config=replace(feed.config, loader=one.loader)) for one in (ours, theirs)]
    with (
        closing(build_loader(feeds[0], device=ours.device, threads=threads)) as a,
        closing(build_loader(feeds[1], device=theirs.device, threads=threads)) as b,
    ):
        for left, right in zip(a.iter_epoch(0), b.iter_epoch(0), strict=True):
            if not torch.equal(left.sample_ids, right.sample_ids):
                raise RuntimeError("the loaders differ in what they load")
            yield left.images.cpu().float(), right.images.cpu().float(), left.sample_ids


@torch.inference_mode()
def compare(
    feed: Feed, ours: Program, theirs: Program, threads: int, out: Path, net: nn.Module | None = None
) -> Difference:
    """Compare one pair on one split, and write the picture of the worst image to `out`: ours, theirs, and eight times
    the difference, side by side."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (feed.config.mean, feed.config.std))
    histogram = np.zeros(round(256 / BIN) + 1, np.int64)
    total, largest, num_images, num_same, worst = 0.0, 0.0, 0, 0, (-1.0, -1)
    panels = torch.empty(0)
    for left, right, sample_ids in both(feed, ours, theirs, threads):
        if net:
            num_same += int((net(left).argmax(1) == net(right).argmax(1)).sum())
        left, right = left * std + mean, right * std + mean
        difference = (left - right).abs()
        bins = (difference / BIN).round().clamp_(max=len(histogram) - 1).to(torch.int64)
        histogram += np.bincount(bins.flatten().numpy(), minlength=len(histogram))
        total += float(difference.sum(dtype=torch.float64))
        largest = max(largest, float(difference.max()))
        num_images += len(left)
        means = difference.mean(dim=(1, 2, 3))
        row = int(means.argmax())
        if float(means[row]) > worst[0]:
            worst = float(means[row]), int(sample_ids[row])
            panels = torch.cat([left[row], right[row], 8 * difference[row]], dim=2)
    kind = "training" if feed.augment else "validation"
    picture = out / f"{kind}-{ours.name}-{theirs.name}.png"
    pixels = panels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(picture)
    return Difference(
        split=kind,
        programs=f"{ours.name} − {theirs.name}",
        num_images=num_images,
        mean=total / int(histogram.sum()),
        p99=float(np.searchsorted(histogram.cumsum(), 0.99 * histogram.sum())) * BIN,
        max=largest,
        worst_mean=worst[0],
        worst_image=feed.split.source_name(worst[1]),
        picture=picture.name,
        top1_agreement=num_same / num_images if net else None,
    )


def trained(path: Path, dataset: ShardSet) -> nn.Module:
    """The network of a checkpoint. Raises ValueError where it is none, or has other classes."""
    loaded = load_network(path, device=torch.device("cpu"))
    if len(loaded.classes) != len(dataset.classes):
        raise ValueError(
            f"{path}: has {len(loaded.classes)} classes, {dataset.root} {len(dataset.classes)}; give its dataset"
        )
    return loaded.net.eval()


def compare_all(
    setup: Setup, num_images: int, max_batch: int | None, checkpoint: Path | None, out: Path
) -> list[Difference]:
    """Every pair, on training and validation images; the pictures go to `out`."""
    recipe, dataset = setup.recipe, setup.dataset
    net = trained(checkpoint, dataset) if checkpoint else None  # a wrong one is told at once
    feeds = [
        feed_of(recipe, dataset.split(split), training, num_images, max_batch or MAX_BATCH)
        for training, split in ((True, recipe.data.train_split), (False, recipe.data.val_split))
    ]
    out.mkdir(parents=True, exist_ok=True)
    pairs = pairs_on(setup.world.device)
    return [compare(feed, *pair, setup.threads, out, net) for feed in feeds for pair in pairs]


def table(differences: list[Difference]) -> list[str]:
    """For people: a row a difference, then which image is the worst."""
    rows = [("split", "between", "images", "mean", "99 % ≤", "max", "worst image", "same top-1")]
    for d in differences:
        top1 = "–" if d.top1_agreement is None else f"{d.top1_agreement:.4f}"
        rows.append((d.split, d.programs, str(d.num_images), f"{d.mean:.3f}", f"{d.p99:.2f}", f"{d.max:.1f}",
                     f"{d.worst_mean:.3f}", top1))  # fmt: skip
    worst = [wrapped(f"  worst of {d.split}, {d.programs}: {d.worst_image} ({d.picture})") for d in differences]
    return [*tabulated(rows, 2), *(line for lines in worst for line in lines)]
