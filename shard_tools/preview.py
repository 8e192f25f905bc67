"""Draw a contact sheet: a .png of a dataset's samples with their class names, as stored or as training sees them.

`--augment` uses the same loader and mixer as a training run.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from penstock.recipes import Recipe, recipe_file
from penstock.recipes.config import load_config
from penstock.shards.format import ShardSet, Split, atomic_write
from penstock.shards.program import SHARD_TOOLS

CELL = 160  # pixels, the side of a picture
TEXT = 16  # pixels, the height of a line of text
GAP = 6
COLUMNS = 8
VIEWS = 7  # augmentations of each sample, beside the sample itself
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
Cell = tuple[Image.Image, str]  # a picture and the text under it


def preview(
    root: Path, file: Path, split: str = "train", num: int = 24, seed: int = 0, augment: str | None = None
) -> None:
    """Draw `num` samples of a split, chosen by `seed`, and save the sheet as `file`.

    With a recipe in `augment`, each row shows a sample and augmentations of it. If the recipe mixes images, the samples
    are mixed with each other, and the text under an image gives the share of each class.

    Raises:
        ValueError: there is no such dataset, split or recipe; an image cannot be decoded; the file cannot be written.
    """
    if file.suffix.lower() != ".png":
        raise ValueError(f"{file}: the sheet is a PNG image; use a name that ends in .png")
    shard_set = ShardSet.open(root)
    shard_set.check_on_disk()
    chosen = shard_set.split(split)
    names = [info.name for info in shard_set.classes]
    ids = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:num])
    if not len(ids):
        raise ValueError(f"{root}: split {split!r} has no samples")
    pictures = [_stored(chosen, int(i)) for i in ids]
    classes = [names[label] for label in chosen.samples["label"][ids]]
    cells, columns, headings = list(zip(pictures, classes, strict=True)), min(COLUMNS, len(ids)), list[str]()
    if augment is not None:
        views = list(_augmented(chosen, ids, augment, seed, names))
        firsts = [(cell[0], f"{cell[1]}\nsample {i:,}") for cell, i in zip(cells, ids, strict=True)]
        cells = [cell for row in zip(firsts, *views, strict=True) for cell in row]
        headings = ["original", *(f"augmented {number}" for number in range(1, VIEWS + 1))]
        columns = len(headings)
    try:
        with atomic_write(file) as stream:
            sheet(cells, columns, headings).save(stream, "PNG")
    except OSError as error:
        raise ValueError(f"{file}: cannot be written ({error.strerror})") from None


def sheet(cells: list[Cell], columns: int, headings: Sequence[str] = ()) -> Image.Image:
    """Arrange pictures, `columns` per row, each with its text below, under one line of headings if given. RGB."""
    top = GAP + (TEXT if headings else 0)
    height = CELL + TEXT * max(text.count("\n") + 1 for _, text in cells) + GAP
    page = Image.new("RGB", (GAP + columns * (CELL + GAP), top + -(-len(cells) // columns) * height), WHITE)
    for column, heading in enumerate(headings):
        _write(page, GAP + column * (CELL + GAP), GAP // 2, heading)
    for i, (image, text) in enumerate(cells):
        x, y = GAP + i % columns * (CELL + GAP), top + i // columns * height
        scale = CELL / max(image.size)
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        page.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
        _write(page, x, y + CELL, text)
    return page


def _write(page: Image.Image, x: int, y: int, text: str) -> None:
    """Write lines of text, each cut to the width of a picture."""
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, line in enumerate(text.split("\n")):
        while line and draw.textlength(line, font) > CELL:
            line = line.removesuffix("…")[:-1] + "…" if len(line) > 1 else ""
        draw.text((x, y + number * TEXT), line, BLACK, font)


def _stored(split: Split, sample_id: int) -> Image.Image:
    row = split.samples[sample_id]
    try:
        with open(split.shard_path(int(row["shard"])), "rb") as stream:
            stream.seek(int(row["offset"]))
            with Image.open(io.BytesIO(stream.read(int(row["size"])))) as image:
                return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        remedy = f"find all such images with: {SHARD_TOOLS} verify --decode {split.root}"
        raise ValueError(f"{split.where(sample_id)}: cannot be decoded ({error}); {remedy}") from None


def _augmented(
    split: Split, ids: NDArray[np.int64], recipe_name: str, seed: int, names: Sequence[str]
) -> Iterator[list[Cell]]:
    """Yield the samples `ids` VIEWS times, augmented and mixed as an epoch of the recipe's training does it."""
    import torch  # imported here, as below, because it takes seconds and a sheet without augmentation does not need it

    from penstock.pipeline.feed import Feed
    from penstock.pipeline.loader import DaliLoader
    from penstock.pipeline.mixing import Mixer

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
    mixer = Mixer(recipe.augment, len(names), seed=seed)
    mean, std = np.array(config.mean), np.array(config.std)
    try:
        for epoch in range(VIEWS):
            (batch,) = mixer.mixed(loader.iter_epoch(epoch))
            pixels = batch.images.permute(0, 2, 3, 1).float().numpy() * std + mean
            images = [Image.fromarray(image) for image in pixels.round().clip(0, 255).astype(np.uint8)]
            is_mixed = batch.labels.ndim == 2
            yield [
                (image, _shares(label.numpy(), names) if is_mixed else "")
                for image, label in zip(images, batch.labels, strict=True)
            ]
    finally:
        loader.close()


def _shares(label: NDArray[np.float32], names: Sequence[str]) -> str:
    """One line per class in a mixed image, largest share first, down to half a percent. label: (C,), the shares."""
    there = sorted(np.flatnonzero(label >= 0.005).tolist(), key=lambda i: -label[i])
    return "\n".join(f"{label[i]:.0%} {names[i]}" for i in there)
