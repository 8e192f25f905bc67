"""Score networks on a split, with each image exactly once over all ranks."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.model.metrics import topk_correct
from penstock.pipeline.batch import Batch, Loader
from penstock.pipeline.feed import Feed
from penstock.recipes import Recipe
from penstock.shards.format import ShardSet
from penstock.training import distributed
from penstock.training.data import eval_loader
from penstock.training.distributed import World
from penstock.training.inspection import EvalInspection, Inspection
from penstock.training.learner import Learner
from penstock.training.records import Scores

TIMED = 64  # images in a rank's batch


@torch.inference_mode()
def evaluate(
    nets: dict[str, nn.Module],
    loader: Loader,
    device: torch.device,
    autocast: AbstractContextManager[object],
    *,
    num_classes: int,
    flip: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    watched: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> tuple[Scores, Inspection] | None:
    """Score each of `nets` in one pass over the loader's split.

    `nets`: prefix of its scores → network: {"": net}, or with averaged weights {"": net, "ema_": average}. The
    inspection is made for the last of them. flip: average the logits of each image and its mirror image. `should_stop`
    is called the same number of times on every rank; if it returns True, the result is None. `watched` passes on the
    batches (`Watchdog.each`).

    Raises RuntimeError if not every image was counted once.
    """
    for net in nets.values():
        net.eval()
    feed, world_size = loader.feed, loader.feed.world_size
    inspection = EvalInspection(num_classes, device)
    sums = torch.zeros(len(nets), 4, dtype=torch.float64, device=device)
    whole_rounds = feed.num_samples // (
        feed.batch_size * world_size
    )  # every rank has this many batches, and some have one more
    for i, (images, labels, sample_ids) in enumerate(watched(loader.iter_epoch(0))):
        for row, net in zip(sums, nets.values(), strict=True):
            with autocast:
                logits = predict_logits(net, images, flip)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            row += torch.stack([*topk_correct(logits, labels), loss, torch.ones_like(labels).sum()])
        inspection.add(logits, labels, sample_ids.to(device, non_blocking=True))
        if i < whole_rounds and should_stop():
            return None
    scores = _scores(dict(zip(nets, distributed.sum_tensor(sums).tolist(), strict=True)), feed)
    return scores, inspection.reduced(distributed.sum_tensor, rank=feed.rank, world_size=world_size)


def _scores(sums: dict[str, list[float]], feed: Feed) -> Scores:
    """Scores from `sums`: prefix of the scores → correct, correct among the first 5, sum of losses, images."""
    scores: dict[str, float] = {}
    for prefix, (top1, top5, loss_sum, num_images) in sums.items():
        if num_images != feed.num_samples:
            raise RuntimeError(f"validation counted {num_images:.0f} of {feed.num_samples} images")
        scores[f"{prefix}top1"] = top1 / num_images
        scores[f"{prefix}top5"] = top5 / num_images
        scores[f"{prefix}loss"] = loss_sum / num_images
        scores["num_images"] = int(num_images)
    if feed.num_samples < len(feed.split):
        scores["split_images"] = len(feed.split)
    return cast(Scores, scores)


def time_validation(learner: Learner, recipe: Recipe, dataset: ShardSet, world: World) -> float:
    """Measure the seconds per image of a validation, over all ranks, on a few images. The first batch does not count if
    there are more, since pipelines start in it."""
    loader = eval_loader(recipe, dataset, world, recipe.data.val_split, TIMED, at_most=3 * TIMED * world.world_size)
    came: list[float] = []

    def watched(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            came.append(time.perf_counter())
            yield batch

    num_classes, num_images = len(dataset.classes), loader.feed.num_samples
    evaluate(learner.nets, loader, world.device, learner.autocast, num_classes=num_classes,
             flip=recipe.train.val_flip, watched=watched)  # fmt: skip
    loader.close()
    uncounted = min(len(came) - 1, 1)
    seconds = time.perf_counter() - came[uncounted] if came else 0.0  # rank 0 always has some
    return distributed.from_rank_0(seconds / (num_images - uncounted * TIMED * world.world_size), world)


def predict_logits(net: nn.Module, images: Tensor, flip: bool) -> Tensor:
    """images (N, 3, S, S) → logits (N, C) float32. With `flip`, averaged with the logits of the mirror images."""
    logits: Tensor = net(images).float()
    return (logits + net(images.flip(3)).float()) / 2 if flip else logits
