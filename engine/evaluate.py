"""Scoring networks on a split, each image exactly once over all ranks. `train.py eval` is its command."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.class_map import lines, map_classes, relabelled
from engine.learner import autocast_of
from engine.load import load_network
from engine.loaders import eval_loader, open_dataset
from model.metrics import topk_correct
from pipeline.batch import Batch, Loader
from training import distributed, environment
from training.inspection import EvalInspection


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
    loss (mean cross-entropy) and ema_top1, ema_top5, ema_loss, with num_images. The second dict is what
    `EvalInspection` saw of the last of the nets. flip: the mean of the logits of an image and of its mirror image.
    `should_stop` is asked equally often on every rank; None where it said yes. `watched` hands on
    the batches (`Watchdog.each`).

    Raises RuntimeError where not every image was counted once.
    """
    for net in nets.values():
        net.eval()
    split, world_size = loader.feed.split, loader.feed.world_size
    inspection = EvalInspection(num_classes, device)
    sums = torch.zeros(len(nets), 4, dtype=torch.float64, device=device)
    whole_rounds = len(split) // (loader.feed.batch_size * world_size)  # every rank has so many batches, some one more
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
        if num_images != len(split):
            raise RuntimeError(f"validation counted {num_images:.0f} of {len(split)} images")
        means = {"top1": top1 / num_images, "top5": top5 / num_images, "loss": loss_sum / num_images}
        figures |= {prefix + name: value for name, value in means.items()} | {"num_images": int(num_images)}
    return figures, inspection.reduced(distributed.sum_tensor, rank=loader.feed.rank, world_size=world_size)


def predict_logits(net: nn.Module, images: Tensor, flip: bool) -> Tensor:
    """images (N, 3, S, S) → logits (N, C) float32; with `flip` the mean with those of the mirror images."""
    logits: Tensor = net(images).float()
    return (logits + net(images.flip(3)).float()) / 2 if flip else logits


def run(
    checkpoint: Path, data: str | None, split: str | None, class_map: Path | None, weights: Any, image_size: int | None,
    resize_size: int | None, flip: bool | None, batch_size: int, device: Any, as_json: bool,
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
        dataset, split = open_dataset(recipe), split or recipe.data.val_split
        found = map_classes(loaded.classes, dataset.classes, class_map)
        mapped = relabelled(dataset, split, loaded.classes, found, checkpoint)
        if world.is_main:
            for line in lines(loaded.classes, dataset, split, found):
                click.echo(line, err=True)
        loader = eval_loader(recipe, mapped, world, split, batch_size)
        flip = recipe.train.val_flip if flip is None else flip
        autocast = autocast_of(recipe, world.device)
        scored = evaluate({"": loaded.net}, loader, world.device, autocast, num_classes=len(loaded.classes), flip=flip)
        loader.close()
        assert scored is not None
        if world.is_main:
            figures = scored[0]
            text = f"top-1 {figures['top1']:.4f}  top-5 {figures['top5']:.4f}  loss {figures['loss']:.4f}"
            click.echo(json.dumps(figures) if as_json else f"{text}  on {figures['num_images']} images")
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or checkpoint}: {error.strerror or error}") from None
    finally:
        distributed.finish()
