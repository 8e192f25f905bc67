"""Pictures of a run: the network's input, and the images that it gets wrong."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from penstock.pipeline.batch import Batch
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.holes import NO_SAMPLE
from penstock.pipeline.reader import ShardReader, open_reader
from penstock.shards.format import ShardSet, Split
from penstock.training.inspection import Inspection, write_worst
from penstock.training.metrics import MetricsLog
from penstock.training.sheet import draw_confusion

SHOWN_IMAGES = 24


def show_first(
    batches: Iterator[Batch], metrics: MetricsLog, config: DataConfig, dataset: ShardSet, step: int
) -> Iterator[Batch]:
    """Pass on the batches, and log the images of the first one as the network sees them, augmented and mixed."""
    for number, batch in enumerate(batches):
        if number == 0:
            count = min(SHOWN_IMAGES, len(batch.images))
            mean, std = (torch.tensor(three).view(3, 1, 1) for three in (config.mean, config.std))
            images = (batch.images[:count].float().cpu() * std + mean).round().clamp(0, 255).to(torch.uint8)
            split = dataset.split(config.train_split)
            captions = [caption(dataset, split, i) for i in batch.sample_ids[:count].tolist()]
            metrics.images("train/augmented", images.permute(0, 2, 3, 1).numpy(), captions, step)
        yield batch


def caption(dataset: ShardSet, split: Split, sample_id: int) -> str:
    if sample_id == NO_SAMPLE:
        return "quarantined"
    return f"{dataset.classes[int(split.samples[sample_id]['label'])].name}\n{sample_id}"


def show_worst(run_dir: Path, metrics: MetricsLog, dataset: ShardSet, feed: Feed, seen: Inspection, step: int) -> None:
    """Write the worst losses and the confused classes of a validation to the run's directory and the log.

    Images in remote shards that are not in the cache get only an entry, without a picture.
    """
    names, split = [c.name for c in dataset.classes], feed.split
    reader = open_reader(feed)

    def image_bytes(sample_id: int) -> bytes:
        if not isinstance(reader, ShardReader):
            raise ValueError("not in the cache")
        return bytes(reader.views(np.array([sample_id]))[0])

    paths = write_worst(run_dir, seen, image_bytes, names, split.source_name)
    reader.close()
    shown = [(path, row) for path, row in zip(paths, seen.worst, strict=True) if path]
    captions = [f"{names[row.label]}\n→ {names[row.prediction]} {row.loss:.2f}" for _, row in shown]
    metrics.images("val/worst", [path for path, _ in shown], captions, step)
    confusion = seen.confusion
    if len(confusion.labels) > 1:
        picture = draw_confusion(confusion.counts, [names[label] for label in confusion.labels])
        metrics.picture("val/confused", picture, step)
