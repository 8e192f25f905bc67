"""Measure each augmentation: its difference from torchvision and its cost on the CPU. Figures: docs/augmentations.md.

python -m benchmarks.augmentations DIR [--max-images 500]    DIR: a packed dataset, on an otherwise idle machine
"""

import statistics
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import click
import numpy as np
import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.augment.auto import OPS
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.reference import ReferenceLoader
from penstock.shards.format import ShardSet

CASES: dict[str, AugmentConfig] = {
    "random-resized crop": AugmentConfig(),
    "centre crop": AugmentConfig(crop="centre"),
    "pad and crop": AugmentConfig(crop="pad", pad=16),
    "vertical flip": AugmentConfig(vflip=0.5),
    "rotation, linear": AugmentConfig(rotation=30),
    "rotation, nearest": AugmentConfig(rotation=30, rotation_filter="nearest"),
    "brightness": AugmentConfig(brightness=0.4),
    "contrast": AugmentConfig(contrast=0.4),
    "saturation": AugmentConfig(saturation=0.4),
    "hue": AugmentConfig(hue=0.1),
    "all four": AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "lighting": AugmentConfig(lighting=0.1),
    "grayscale": AugmentConfig(grayscale=1),
    "blur": AugmentConfig(blur=1),
    "noise": AugmentConfig(noise=1),
    "salt and pepper": AugmentConfig(salt_pepper=1),
    "JPEG": AugmentConfig(jpeg=1),
    "erasing": AugmentConfig(erase=1),
    "TrivialAugmentWide": AugmentConfig(auto="trivial"),
    "RandAugment": AugmentConfig(auto="rand"),
    "AutoAugment": AugmentConfig(auto="autoaugment"),
}
CPU, BATCH_SIZE, IMAGE_SIZE, SEED = torch.device("cpu"), 50, 224, 1
COST_REPEATS = 5


def feed_of(shard_set: ShardSet, config: AugmentConfig) -> Feed:
    split = shard_set.split("train")
    batch_size = min(BATCH_SIZE, len(split))
    return Feed(split=split, config=DataConfig(image_size=IMAGE_SIZE), augment=config, batch_size=batch_size,
                global_batch_size=batch_size, seed=SEED)  # fmt: skip


def differences(name: str, feed: Feed, max_images: int) -> dict[str, list[float]]:
    """Return each image's mean absolute difference from torchvision's with the same random draws, in grey levels.

    The key is the case's name. TrivialAugmentWide's images are also listed under the operation's name.
    """
    found: dict[str, list[float]] = defaultdict(list)
    levels = np.reshape(feed.config.std, (3, 1, 1))
    with (
        closing(DaliLoader(feed, device=CPU, threads=2)) as ours,
        closing(ReferenceLoader(feed, device=CPU, workers=0)) as theirs,
    ):
        for planned, a, b in zip(feed.batches(0, 0, IMAGE_SIZE), ours.iter_epoch(0), theirs.iter_epoch(0), strict=True):
            values = (np.abs(a.images.numpy() - b.images.numpy()) * levels).mean((1, 2, 3)).tolist()
            found[name] += values
            if "auto_op" in planned.params and name == "TrivialAugmentWide":
                for op, value in zip(planned.params["auto_op"][:, 0], values, strict=True):
                    found[f"… {OPS[op]}"].append(value)
            if len(found[name]) >= max_images:
                break
    return found


def cpu_ms(loader: DaliLoader, epoch: int) -> float:
    """Return the CPU time per image of one epoch, in milliseconds."""
    start_s = time.process_time()
    count = sum(len(batch.labels) for batch in loader.iter_epoch(epoch))
    return 1000 * (time.process_time() - start_s) / count


@click.command()
@click.argument("data", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--max-images", default=500, show_default=True, metavar="N", help="Most images to compare in each case.")
def main(data: Path, max_images: int) -> None:
    """Measure each augmentation on the packed dataset DIR.

    Prints a table: the difference from torchvision in grey levels, the CPU time per image, and the time added to the
    plain random-resized crop, which runs alternately with each case. Use an otherwise idle machine.
    """
    shard_set = ShardSet.open(data)
    click.echo("| | mean | median image | worst image | ms per image | added |\n|" + " --- |" * 6)
    with closing(DaliLoader(feed_of(shard_set, AugmentConfig()), device=CPU, threads=2)) as plain:
        cpu_ms(plain, 0)
        for name, config in CASES.items():
            feed = feed_of(shard_set, config)
            with closing(DaliLoader(feed, device=CPU, threads=2)) as loader:
                cpu_ms(loader, 0)  # builds the graph
                pairs = [(cpu_ms(plain, epoch), cpu_ms(loader, epoch)) for epoch in range(1, COST_REPEATS + 1)]
            costs = f"{statistics.median(b for _, b in pairs):.2f} | {statistics.median(b - a for a, b in pairs):+.2f}"
            for label, found in differences(name, feed, max_images).items():
                shown = f"{np.mean(found):.2f} | {np.median(found):.2f} | {max(found):.2f}"
                click.echo(f"| {label} | {shown} | {costs if label == name else ' | '} |")


if __name__ == "__main__":
    main()
