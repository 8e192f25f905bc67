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


def predict_logits(net: nn.Module, images: Tensor, flip: bool) -> Tensor:
    """images (N, 3, S, S) → logits (N, C) float32; with `flip` the mean with those of the mirror images."""
    logits: Tensor = net(images).float()
    return (logits + net(images.flip(3)).float()) / 2 if flip else logits


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR|URL", help="Packed dataset; by default the one that the run was trained on.")
@click.option("--split", metavar="NAME", help="[default: the recipe's data.val_split]")
@click.option("--weights", type=click.Choice(["auto", "raw", "ema"]), default="auto", help="auto: EMA where there is.")
@click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="[default: the recipe's val_image_size]")
@click.option("--resize-size", type=click.IntRange(min=1), metavar="S", help="[default: in the recipe's proportion]")
@click.option("--flip/--no-flip", default=None, help="Mean with the mirror image's. [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, metavar="B", help="Images a GPU takes at once.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if there.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def command(
    checkpoint: Path, data: str | None, split: str | None, weights: Any, image_size: int | None,
    resize_size: int | None, flip: bool | None, batch_size: int, device: Any, as_json: bool,
) -> None:  # fmt: skip
    """Score CHECKPOINT, a .pt file or a run's directory, on every image of a split, once. Runs under torchrun, too.

    \b
    python train.py eval runs/NAME --data DIR --image-size 288
    """
    try:
        world = distributed.start(device)
        environment.choose_kernels()
        loaded = load_network(checkpoint, weights=weights, device=world.device)
        recipe = loaded.recipe
        size = image_size or recipe.data.val_image_size
        resized = resize_size or round(size * recipe.data.val_resize_size / recipe.data.val_image_size)
        path = data or recipe.data.path
        recipe = replace(recipe, data=replace(recipe.data, path=path, val_image_size=size, val_resize_size=resized))
        dataset = open_dataset(recipe)
        if [c.wnid for c in dataset.classes] != [c.wnid for c in loaded.classes]:
            raise ValueError(
                f"{path}: has other classes than {checkpoint} was trained on; give the dataset of its kind"
            )
        loader = eval_loader(recipe, dataset, world, split or recipe.data.val_split, batch_size)
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
