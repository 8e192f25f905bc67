"""`train.py eval`: a checkpoint scored on a split of any dataset that has classes of its network."""

import json
from dataclasses import replace

import click
from rich.console import Console

from penstock.commands.class_map import lines, map_classes, relabelled
from penstock.commands.options import EvalOptions
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
    """What `train.py eval` does."""
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


def score(loaded: Loaded, options: EvalOptions, world: World) -> Scores:
    """The scores of a network on a split. Rank 0 says how the split's classes are the network's.

    Raises ValueError where the split or one of its classes is not there.
    """
    recipe = _recipe_for(loaded.recipe, options)
    split = options.split or recipe.data.val_split
    if not options.split and not validates(recipe):
        raise ValueError(
            f"{options.checkpoint}: trained with data.val_split = none; name the split to score with --split"
        )
    own, size = getattr(loaded.net, "image_size", None), recipe.data.val_image_size
    if own not in (None, size):
        raise ValueError(f"--image-size: {recipe.model.name} takes images of {own} px only, not {size}")
    dataset = open_dataset(recipe)
    found = map_classes(loaded.classes, dataset.classes, options.class_map)
    mapped = relabelled(dataset, split, loaded.classes, found, options.checkpoint)
    if world.is_main:
        for line in lines(loaded.classes, dataset, split, found):
            click.echo(line, err=True)
    loader = eval_loader(recipe, mapped, world, split, options.batch_size, at_most=options.max_val_images or 0)
    flip = recipe.train.val_flip if options.flip is None else options.flip
    autocast = autocast_of(recipe, world.device)
    with Progress(world.is_main, console=Console(stderr=True, highlight=False)) as progress:
        scored = evaluate({"": loaded.net}, loader, world.device, autocast, num_classes=len(loaded.classes),
                          flip=flip, watched=lambda batches: progress.each(batches, split, loader.feed))  # fmt: skip
    loader.close()
    assert scored is not None
    return scored[0]


def _recipe_for(recipe: Recipe, options: EvalOptions) -> Recipe:
    """The checkpoint's recipe with the data and the sizes that the options give."""
    data = recipe.data
    size = options.image_size or data.val_image_size
    resized = options.resize_size or round(size * data.val_resize_size / data.val_image_size)
    path = options.data or data.path
    return replace(recipe, data=replace(data, path=path, val_image_size=size, val_resize_size=resized))


def in_words(scores: Scores) -> str:
    images = count(scores["num_images"], scores.get("split_images", scores["num_images"]))
    return f"top-1 {scores['top1']:.4f}  top-5 {scores['top5']:.4f}  loss {scores['loss']:.4f}  on {images} images"
