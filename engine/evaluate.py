"""Scoring networks on a split, each image exactly once over all ranks. `train.py eval` is its command."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from engine.class_map import lines, map_classes, relabelled
from engine.learner import autocast_of
from engine.load import load_network
from engine.loaders import eval_loader, open_dataset
from engine.splits import validates
from model.metrics import topk_correct
from pipeline.batch import Batch, Loader
from recipes import Recipe
from shard_tools.format import ShardSet
from training import distributed, environment
from training.distributed import World
from training.figures import count
from training.inspection import EvalInspection
from training.progress import Progress

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


def run(
    checkpoint: Path, data: str | None, split: str | None, class_map: Path | None, weights: Any, image_size: int | None,
    resize_size: int | None, flip: bool | None, batch_size: int, max_val_images: int | None, device: Any, as_json: bool,
) -> None:  # fmt: skip
    """What `train.py eval` does; its options are in engine/commands.py."""
    try:
        world = distributed.start(device)
        environment.choose_kernels()
        loaded = load_network(checkpoint, weights=weights, device=world.device)
        recipe = loaded.recipe
        size = image_size or recipe.data.val_image_size
        resized = resize_size or round(size * recipe.data.val_resize_size / recipe.data.val_image_size)
        path = data or recipe.data.path
        recipe = replace(recipe, data=replace(recipe.data, path=path, val_image_size=size, val_resize_size=resized))
        if not split and not validates(recipe):
            raise ValueError(f"{checkpoint}: trained with data.val_split = none; name the split to score with --split")
        dataset, name = open_dataset(recipe), split or recipe.data.val_split
        found = map_classes(loaded.classes, dataset.classes, class_map)
        mapped = relabelled(dataset, name, loaded.classes, found, checkpoint)
        if world.is_main:
            for line in lines(loaded.classes, dataset, name, found):
                click.echo(line, err=True)
        loader = eval_loader(recipe, mapped, world, name, batch_size, at_most=max_val_images or 0)
        flip = recipe.train.val_flip if flip is None else flip
        autocast = autocast_of(recipe, world.device)
        with Progress(world.is_main, console=Console(stderr=True, highlight=False)) as progress:
            scored = evaluate({"": loaded.net}, loader, world.device, autocast, num_classes=len(loaded.classes),
                              flip=flip, watched=lambda batches: progress.each(batches, name, loader.feed))  # fmt: skip
        loader.close()
        assert scored is not None
        if world.is_main:
            figures = scored[0]
            text = f"top-1 {figures['top1']:.4f}  top-5 {figures['top5']:.4f}  loss {figures['loss']:.4f}"
            images = count(figures["num_images"], figures.get("split_images", figures["num_images"]))
            click.echo(json.dumps(figures) if as_json else f"{text}  on {images} images")
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or checkpoint}: {error.strerror or error}") from None
    finally:
        distributed.finish()
