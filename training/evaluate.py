"""Scoring networks on a split, each image exactly once over all ranks."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.metrics import topk_correct
from pipeline.batch import Batch, Loader
from recipes import Recipe
from shards.format import ShardSet
from training import distributed
from training.data import eval_loader
from training.distributed import World
from training.inspection import EvalInspection

TIMED = 64  # images of a rank's batch


@torch.inference_mode()
def evaluate(
    nets: dict[str, nn.Module],
    loader: Loader,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    *,
    num_classes: int,
    flip: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    watched: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Score each of `nets` in one pass over the loader's split.

    `nets`: prefix of its figures → network; with {"": net, "ema_": average} the figures are top1, top5 (fractions),
    loss (mean cross-entropy) and ema_top1, ema_top5, ema_loss, with num_images; where the loader feeds a choice of its
    split, split_images has how many that has. The second dict is what
    `EvalInspection` saw of the last of the nets. flip: the mean of the logits of an image and of its mirror image.
    `should_stop` is asked equally often on every rank; None where it said yes. `watched` hands on
    the batches (`Watchdog.each`).

    Raises RuntimeError where not every image was counted once.
    """
    for net in nets.values():
        net.eval()
    feed, world_size = loader.feed, loader.feed.world_size
    inspection = EvalInspection(num_classes, device)
    sums = torch.zeros(len(nets), 4, dtype=torch.float64, device=device)
    whole_rounds = feed.num_samples // (feed.batch_size * world_size)  # every rank has so many batches, some one more
    for i, (images, labels, sample_ids) in enumerate(watched(loader.iter_epoch(0))):
        for row, net in zip(sums, nets.values(), strict=True):
            with autocast:
                logits = predict_logits(net, images, flip)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            row += torch.stack([*topk_correct(logits, labels), loss, torch.ones_like(labels).sum()])
        inspection.add(logits, labels, sample_ids.to(device, non_blocking=True))
        if i < whole_rounds and should_stop():
            return None
    figures: dict[str, Any] = {}
    for prefix, (top1, top5, loss_sum, num_images) in zip(nets, distributed.sum_tensor(sums).tolist(), strict=True):
        if num_images != feed.num_samples:
            raise RuntimeError(f"validation counted {num_images:.0f} of {feed.num_samples} images")
        means = {"top1": top1 / num_images, "top5": top5 / num_images, "loss": loss_sum / num_images}
        figures |= {prefix + name: value for name, value in means.items()} | {"num_images": int(num_images)}
    if feed.num_samples < len(feed.split):
        figures["split_images"] = len(feed.split)
    return figures, inspection.reduced(distributed.sum_tensor, rank=feed.rank, world_size=world_size)


def time_validation(
    nets: dict[str, nn.Module], recipe: Recipe, dataset: ShardSet, world: World, autocast: AbstractContextManager[Any]
) -> float:
    """Seconds an image of a validation takes, over all ranks, by a few of them; those of the first batch, in which
    pipelines start, do not count where there are more."""
    loader = eval_loader(recipe, dataset, world, recipe.data.val_split, TIMED, at_most=3 * TIMED * world.world_size)
    came: list[float] = []

    def watched(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            came.append(time.perf_counter())
            yield batch

    num_classes, num_images = len(dataset.classes), loader.feed.num_samples
    evaluate(nets, loader, world.device, autocast, num_classes=num_classes, flip=recipe.train.val_flip, watched=watched)
    loader.close()
    uncounted = min(len(came) - 1, 1)
    seconds = time.perf_counter() - came[uncounted] if came else 0.0  # rank 0 always has some
    return distributed.of_main(seconds / (num_images - uncounted * TIMED * world.world_size), world)


def predict_logits(net: nn.Module, images: Tensor, flip: bool) -> Tensor:
    """images (N, 3, S, S) → logits (N, C) float32; with `flip` the mean with those of the mirror images."""
    logits: Tensor = net(images).float()
    return (logits + net(images.flip(3)).float()) / 2 if flip else logits
