"""`train.py eval`: a checkpoint scored on a split of any dataset that has classes of its network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from commands.class_map import lines, map_classes, relabelled
from commands.load import load_network
from training import distributed, environment
from training.data import eval_loader, open_dataset
from training.evaluate import evaluate
from training.figures import count
from training.learner import autocast_of
from training.progress import Progress
from training.splits import validates


def run(
    checkpoint: Path, data: str | None, split: str | None, class_map: Path | None, weights: Any, image_size: int | None,
    resize_size: int | None, flip: bool | None, batch_size: int, max_val_images: int | None, device: Any, as_json: bool,
) -> None:  # fmt: skip
    """What `train.py eval` does; its options are in commands/options.py."""
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
