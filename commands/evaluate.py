"""`train.py eval`: score a checkpoint on a split of any dataset with classes of its network, or with ImageNet-ReaL's
labels."""

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import cast

import click
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from penstock.commands.class_map import lines, map_classes, only_classes_of, relabelled
from penstock.commands.options import EvalOptions
from penstock.commands.real_labels import RealScores, outputs_of, real_in_words, real_labels, real_lines, score_real
from penstock.commands.trained_network import Loaded, load_network
from penstock.recipes import Recipe
from penstock.training import distributed, environment
from penstock.training.data import eval_loader, open_dataset
from penstock.training.distributed import World
from penstock.training.evaluate import evaluate
from penstock.training.figures import count
from penstock.training.learner import autocast_of
from penstock.training.progress import Progress
from penstock.training.records import Scores
from penstock.training.refusal import told_in_a_line
from penstock.training.splits import validates


def run(options: EvalOptions) -> None:
    """Run `train.py eval`."""
    try:
        with told_in_a_line(options.checkpoint):
            world = distributed.start(options.device)
            environment.choose_kernels()
            loaded = load_network(options.checkpoint, weights=options.weights, device=world.device)
            scores = score(loaded, options, world)
            if world.is_main:
                click.echo(json.dumps(scores) if options.as_json else in_words(scores))
    finally:
        distributed.finish()


def score(loaded: Loaded, options: EvalOptions, world: World) -> Scores | RealScores:
    """Score a network on a split. Rank 0 prints how the split's classes map to the network's.

    Raises ValueError if the split, one of its classes or a label is missing.
    """
    recipe = _recipe_for(loaded.recipe, options)
    split = options.split or recipe.data.val_split
    if not options.split and not validates(recipe):
        raise ValueError(
            f"{options.checkpoint}: trained without a validation split (data.val_split = none). Name one with --split"
        )
    own, size = getattr(loaded.net, "image_size", None), recipe.data.val_image_size
    if own not in (None, size):
        raise ValueError(f"--image-size {size}: {recipe.model.name} accepts only images of {own} px")
    dataset = open_dataset(recipe)
    found = map_classes(loaded.classes, dataset.classes, options.class_map)
    mapped = relabelled(dataset, split, loaded.classes, found, options.checkpoint)
    said = [*lines(loaded.classes, dataset, split, found, options.only_data_classes)]
    net, num_classes, real = loaded.net, len(loaded.classes), None
    if options.only_data_classes:
        kept, mapped = only_classes_of(mapped, split)
        net, num_classes = nn.Sequential(net, Outputs(kept, world.device)), len(kept)
    if options.labels:
        real = real_labels(options.labels, dataset.split(split), outputs_of(loaded.classes, dataset.classes, found))
        said += real_lines(real)
    if world.is_main:
        for line in said:
            click.echo(line, err=True)
    loader = eval_loader(recipe, mapped, world, split, options.batch_size, at_most=options.max_val_images or 0)
    flip = recipe.train.val_flip if options.flip is None else options.flip
    autocast = autocast_of(recipe, world.device)
    with closing(loader), Progress(world.is_main, console=Console(stderr=True, highlight=False)) as progress:
        watched = partial(progress.each, stage=split, feed=loader.feed)
        if real:
            return score_real(net, loader, real, world.device, autocast, flip=flip, watched=watched)
        scored = evaluate({"": net}, loader, world.device, autocast, num_classes=num_classes, flip=flip,
                          watched=watched)  # fmt: skip
    assert scored is not None
    return scored[0]


class Outputs(nn.Module):
    """Select some of a network's outputs: logits (N, C) → (N, len(labels)), in the order of `labels`."""

    def __init__(self, labels: np.ndarray, device: torch.device) -> None:
        super().__init__()
        self.labels = torch.from_numpy(labels).to(device)

    def forward(self, logits: Tensor) -> Tensor:
        return logits.index_select(1, self.labels)


def _recipe_for(recipe: Recipe, options: EvalOptions) -> Recipe:
    """The checkpoint's recipe with the data and sizes from the options."""
    data = recipe.data
    size = options.image_size or data.val_image_size
    resized = options.resize_size or round(size * data.val_resize_size / data.val_image_size)
    path = options.data or data.path
    return replace(recipe, data=replace(data, path=path, val_image_size=size, val_resize_size=resized))


def in_words(scores: Scores | RealScores) -> str:
    if "unlabelled_images" in scores:
        return real_in_words(cast(RealScores, scores))
    images = count(scores["num_images"], scores.get("split_images", scores["num_images"]))
    return f"top-1 {scores['top1']:.4f}  top-5 {scores['top5']:.4f}  loss {scores['loss']:.4f}  on {images} images"
