"""A contact sheet: a dataset → a .png of samples under their class names, as stored or as training sees them.

This is the one place of shard_tools that knows `pipeline` and `recipes`, inside a function: `--augment` shows what the
very loader of a training run makes of the samples.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from shard_tools.format import ShardSet, Split, atomic_write

CELL = 160  # pixels, the side of a picture
TEXT = 16  # pixels, the height of the line under it
GAP = 6
COLUMNS = 8
VIEWS = 7  # augmentations of each sample, beside the sample itself
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def preview(
    root: Path, file: Path, split: str = "train", num: int = 24, seed: int = 0, augment: str | None = None
) -> None:
    """Draw `num` samples of a split, chosen by `seed`, into `file`; with a recipe, each in a row with augmentations.

    Raises:
        ValueError: there is no such dataset, split or recipe; an image cannot be decoded; the file cannot be written.
    """
    if file.suffix.lower() != ".png":
        raise ValueError(f"{file}: the sheet is a PNG image; give a name that ends in .png")
    shard_set = ShardSet.open(root)
    chosen = shard_set.split(split)
    names = [info.name for info in shard_set.classes]
    ids = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:num])
    if not len(ids):
        raise ValueError(f"{root}: split {split!r} has no samples")
    cells = [(_stored(chosen, int(i)), names[chosen.samples["label"][i]]) for i in ids]
    columns = COLUMNS
    if augment is not None:
        columns = 1 + VIEWS
        views = list(_augmented(chosen, ids, augment, seed))
        cells = [cell for i, first in enumerate(cells) for cell in (first, *((epoch[i], "") for epoch in views))]
    try:
        with atomic_write(file) as stream:
            sheet(cells, min(columns, len(cells))).save(stream, "PNG")
    except OSError as error:
        raise ValueError(f"{file}: cannot be written ({error.strerror})") from None


def sheet(cells: list[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """Pictures with a line of text under each, `columns` in a row. RGB."""
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * (CELL + TEXT + GAP)), WHITE)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for i, (image, text) in enumerate(cells):
        x, y = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + TEXT + GAP)
        scale = CELL / max(image.size)
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        page.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
        while text and draw.textlength(text, font) > CELL:
            text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
        draw.text((x, y + CELL), text, BLACK, font)
    return page


def _stored(split: Split, sample_id: int) -> Image.Image:
    row = split.samples[sample_id]
    try:
        with open(split.shard_path(int(row["shard"])), "rb") as stream:
            stream.seek(int(row["offset"]))
            with Image.open(io.BytesIO(stream.read(int(row["size"])))) as image:
                return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        remedy = f"find all such with: python -m shard_tools verify --decode {split.root}"
        raise ValueError(f"{split.where(sample_id)}: cannot be decoded ({error}); {remedy}") from None


def _augmented(split: Split, ids: np.ndarray, recipe_name: str, seed: int) -> Iterator[list[Image.Image]]:
    """VIEWS times the samples `ids` as an epoch of the recipe's training augments them."""
    import torch

    from pipeline.feed import Feed
    from pipeline.loader import DaliLoader
    from recipes import Recipe, recipe_file
    from training.config import load_config

    recipe = load_config(Recipe, recipe_file(recipe_name))
    config = replace(recipe.data, order="sequential", threads=1)
    few = replace(split, samples=np.array(split.samples[ids]))
    feed = Feed(
        split=few,
        config=config,
        augment=replace(recipe.augment, repeats=1),
        batch_size=len(ids),
        global_batch_size=len(ids),
        seed=seed,
    )
    loader = DaliLoader(feed, device=torch.device("cpu"), threads=1)
    mean, std = np.array(config.mean), np.array(config.std)
    try:
        for epoch in range(VIEWS):
            (batch,) = loader.iter_epoch(epoch)
            pixels = batch.images.permute(0, 2, 3, 1).float().numpy() * std + mean
            yield [Image.fromarray(image) for image in pixels.round().clip(0, 255).astype(np.uint8)]
    finally:
        loader.close()
