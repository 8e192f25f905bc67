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

from engine.learner import autocast_of
from engine.load import load_network
from engine.loaders import eval_loader, open_dataset, validates
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


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR|URL", help="Packed dataset; by default the one that the run was trained on.")
@click.option("--split", metavar="NAME", help="[default: the recipe's data.val_split]")
@click.option("--weights", type=click.Choice(["auto", "raw", "ema"]), default="auto", help="auto: EMA where there is.")
@click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="[default: the recipe's val_image_size]")
@click.option("--resize-size", type=click.IntRange(min=1), metavar="S", help="[default: in the recipe's proportion]")
@click.option("--flip/--no-flip", default=None, help="Mean with the mirror image's. [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, metavar="B", help="Images a GPU takes at once.")
@click.option("--max-val-images", type=click.IntRange(min=1), metavar="N", help="N images, as train.py chooses them.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if there.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def command(
    checkpoint: Path, data: str | None, split: str | None, weights: Any, image_size: int | None,
    resize_size: int | None, flip: bool | None, batch_size: int,
    max_val_images: int | None, device: Any, as_json: bool,
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
        if not split and not validates(recipe):
            raise ValueError(f"{checkpoint}: trained with data.val_split = none; name the split to score with --split")
        name = split or recipe.data.val_split
        loader = eval_loader(recipe, dataset, world, name, batch_size, at_most=max_val_images or 0)
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
