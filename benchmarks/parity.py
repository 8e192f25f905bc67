"""What `bench.py parity` measures: images of `DaliLoader` against `ReferenceLoader` (PIL, torchvision), same plan.

Input: a recipe and a packed dataset. Output: differences in grey levels for each split, a picture of the worst image of
each, and how often one network gives the same top-1 on both loaders' validation images.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.text import fitted
from commands.trained_network import load_network
from model.config import EmaConfig, LossConfig, ModelConfig
from pipeline.batch import Loader
from pipeline.build import build_loader
from pipeline.feed import Feed
from recipes import Recipe
from shards.format import ShardSet, Split
from training.distributed import World
from training.learner import build_learner
from training.step import train_step

BIN = 1 / 16  # grey levels; the percentile is read from a histogram
MAX_BATCH = 50
SMALL_IMAGE = 64  # pixels: up to here a CIFAR ResNet judges, above it a ResNet-18
STEP_IMAGES, STEP_SIZE, STEP_LR = 32, 128, 0.05  # of the steps that make the judge's logits worth comparing


@dataclass(frozen=True)
class Program:
    """A loader and where it runs."""

    loader: str  # as in data.loader
    device: torch.device

    @property
    def name(self) -> str:
        return self.loader if self.loader == "reference" else f"{self.loader}-{self.device.type}"


@dataclass(frozen=True)
class Difference:
    """Two programs' images of one split. mean, p99, max: of the absolute difference of a pixel's channel, in grey
    levels 0–255; worst_mean: the mean of the worst image, whose source is worst_image."""

    split: str
    ours: str
    theirs: str
    num_images: int
    mean: float
    p99: float
    max: float
    worst_mean: float
    worst_image: str
    picture: str


@dataclass(frozen=True)
class Verdict:
    """How one network sees two programs' validation images.

    top1_agreement: the fraction with the same top-1. logit_difference: mean absolute difference of the logits over
    their standard deviation. num_predicted: classes that are ever top-1, which tells a degenerate network.
    """

    ours: str
    theirs: str
    num_images: int
    top1_agreement: float
    logit_difference: float
    num_predicted: int


def programs(device: torch.device) -> list[tuple[Program, Program]]:
    """The pairs to compare: the CPU with the reference; on a GPU also the GPU with the reference, and with the CPU."""
    cpu = torch.device("cpu")
    reference = Program("reference", cpu)
    pairs = [(Program("dali", cpu), reference)]
    if device.type == "cuda":
        pairs += [(Program("dali", device), reference), (Program("dali", device), Program("dali", cpu))]
    return pairs


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


def opened(feed: Feed, program: Program, threads: int) -> Loader:
    """In float32, also on the GPU: what is compared is decoding and resampling."""
    feed = replace(feed, config=replace(feed.config, loader=program.loader))  # type: ignore[arg-type]
    return build_loader(feed, device=program.device, threads=threads)


def both(feed: Feed, ours: Program, theirs: Program, threads: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The two programs' images of epoch 0, batch by batch, on the CPU: (n, 3, S, S) normalised, and the sample ids."""
    with closing(opened(feed, ours, threads)) as a, closing(opened(feed, theirs, threads)) as b:
        for left, right in zip(a.iter_epoch(0), b.iter_epoch(0), strict=True):
            if not torch.equal(left.sample_ids, right.sample_ids):
                raise RuntimeError("the loaders differ in what they load")
            yield left.images.cpu().float(), right.images.cpu().float(), left.sample_ids


def compare(feed: Feed, ours: Program, theirs: Program, threads: int, out: Path) -> Difference:
    """Measure one pair on one split, and write the picture of the worst image to `out`."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (feed.config.mean, feed.config.std))
    histogram = np.zeros(round(256 / BIN) + 1, np.int64)
    total, largest, count, num_images, worst = 0.0, 0.0, 0, 0, (-1.0, -1)
    pair: tuple[Tensor, Tensor] | None = None
    for left, right, sample_ids in both(feed, ours, theirs, threads):
        left, right = left * std + mean, right * std + mean
        difference = (left - right).abs()
        bins = (difference / BIN).round().clamp_(max=len(histogram) - 1).to(torch.int64)
        histogram += np.bincount(bins.flatten().numpy(), minlength=len(histogram))
        total += float(difference.sum(dtype=torch.float64))
        largest = max(largest, float(difference.max()))
        count, num_images = count + difference.numel(), num_images + len(left)
        means = difference.mean(dim=(1, 2, 3))
        row = int(means.argmax())
        if float(means[row]) > worst[0]:
            worst, pair = (float(means[row]), int(sample_ids[row])), (left[row], right[row])
    assert pair is not None  # a feed has at least one sample
    kind = "training" if feed.augment else "validation"
    picture = out / f"{kind}-{ours.name}-{theirs.name}.png"
    panels(*pair).save(picture)
    return Difference(
        split=kind,
        ours=ours.name,
        theirs=theirs.name,
        num_images=num_images,
        mean=total / count,
        p99=float(np.searchsorted(histogram.cumsum(), 0.99 * count)) * BIN,
        max=largest,
        worst_mean=worst[0],
        worst_image=feed.split.source_name(worst[1]),
        picture=picture.name,
    )


def panels(ours: Tensor, theirs: Tensor) -> Image.Image:
    """Side by side: ours, theirs, and eight times the difference. (3, S, S) each, in grey levels."""
    pixels = torch.cat([ours, theirs, (ours - theirs).abs() * 8], dim=2).round().clamp(0, 255)
    return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def judge(recipe: Recipe, dataset: ShardSet, steps: int, threads: int) -> nn.Module:
    """A small network with fixed weights, trained for `steps` so that its logits depend on the image."""
    small = recipe.data.val_image_size <= SMALL_IMAGE
    model = ModelConfig(name="cifar_resnet20" if small else "resnet18", zero_init_residual=False)
    recipe = replace(
        recipe,
        model=model,
        data=replace(recipe.data, loader="dali", image_size=recipe.data.image_size if small else STEP_SIZE),
        optimizer=replace(recipe.optimizer, name="sgd", lr=STEP_LR, momentum=0.9),
        loss=LossConfig(label_smoothing=0.0),
        ema=EmaConfig(),
        train=replace(recipe.train, precision="fp32", accumulation=1, clip_grad_norm=0.0, seed=0),
    )
    split = dataset.split(recipe.data.train_split)
    batch_size = min(STEP_IMAGES, len(split))
    cpu = torch.device("cpu")
    world = World(rank=0, local_rank=0, world_size=1, local_world_size=1, device=cpu)
    learner = build_learner(recipe, len(dataset.classes), world)
    learner.net.train()
    feed = Feed(
        split=split, config=recipe.data, augment=recipe.augment, batch_size=batch_size, global_batch_size=batch_size
    )
    with closing(build_loader(feed, device=cpu, threads=threads)) as loader:
        batches = (batch for epoch in range(steps) for batch in loader.iter_epoch(epoch))
        for _ in range(steps):
            train_step(learner, batches, recipe.train)
    return learner.net


def trained(path: Path, dataset: ShardSet) -> nn.Module:
    """The network of a checkpoint. Raises ValueError where it is none, or has other classes."""
    loaded = load_network(path, device=torch.device("cpu"))
    if len(loaded.classes) != len(dataset.classes):
        raise ValueError(
            f"{path}: has {len(loaded.classes)} classes, {dataset.root} {len(dataset.classes)}; give its dataset"
        )
    return loaded.net


@torch.inference_mode()
def agreement(net: nn.Module, feed: Feed, ours: Program, theirs: Program, threads: int) -> Verdict:
    """Show both programs' images of a feed to one network."""
    net.eval()
    logits = [(net(left), net(right)) for left, right, _ in both(feed, ours, theirs, threads)]
    left, right = (torch.cat(parts) for parts in zip(*logits, strict=True))
    return Verdict(
        ours=ours.name,
        theirs=theirs.name,
        num_images=len(left),
        top1_agreement=float((left.argmax(1) == right.argmax(1)).double().mean()),
        logit_difference=float((left - right).abs().mean() / right.std()),
        num_predicted=len(right.argmax(1).unique()),
    )


def measure(
    recipe: Recipe, dataset: ShardSet, device: torch.device, *, num_images: int, steps: int, threads: int,
    batch_size: int | None, checkpoint_file: Path | None, out: Path,
) -> tuple[list[Difference], list[Verdict]]:  # fmt: skip
    """Everything, on training and validation images; the pictures go to `out`."""
    net = trained(checkpoint_file, dataset) if checkpoint_file else None  # a wrong one is told at once
    pairs = programs(device)
    feeds = {
        training: feed_of(recipe, dataset.split(name), training, num_images, batch_size or MAX_BATCH)
        for training, name in ((True, recipe.data.train_split), (False, recipe.data.val_split))
    }
    out.mkdir(parents=True, exist_ok=True)
    differences = [compare(feed, *pair, threads, out) for feed in feeds.values() for pair in pairs]
    net = net or judge(recipe, dataset, steps, threads)
    return differences, [agreement(net, feeds[False], *pair, threads) for pair in pairs]


def table(differences: list[Difference], verdicts: list[Verdict]) -> str:
    """For people: a line each."""
    lines = []
    for d in differences:
        lines += fitted(
            f"  {d.split:<10}  {d.ours + ' − ' + d.theirs:<22}  ",
            [f"{d.num_images} images: mean {d.mean:.3f}, 99 % ≤ {d.p99:.2f}, max {d.max:.1f};",
             f"worst {d.worst_mean:.3f} ({d.worst_image})"],
        )  # fmt: skip
    for v in verdicts:
        lines += fitted(
            f"  top-1       {v.ours + ' − ' + v.theirs:<22}  ",
            [f"{v.num_images} images: agreement {v.top1_agreement:.4f},",
             f"logits differ by {v.logit_difference:.2e} of their spread,", f"{v.num_predicted} classes predicted"],
        )  # fmt: skip
    return "\n".join(lines)
