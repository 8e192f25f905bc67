"""The augmentations one by one: a picture, the difference to torchvision, the cost on the CPU.

    python -m benchmarks.studies.augmentations sheet docs/augmentations.png        on a drawn scene, no data needed
    python -m benchmarks.studies.augmentations difference DIR [--max-images 500]   DIR: a packed dataset
    python -m benchmarks.studies.augmentations cost DIR                            on an otherwise idle machine

docs/augmentations.md holds the figures.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw

from pipeline.augment import AugmentConfig
from pipeline.augment.auto import OPS
from pipeline.augment.graph import augment_images
from pipeline.augment.steps import step_arrays
from pipeline.config import DataConfig
from pipeline.feed import Feed
from pipeline.loader import DaliLoader
from pipeline.reference import ReferenceLoader
from shard_tools.writer import PackOptions, pack
from shards.format import ShardSet

CASES: dict[str, dict[str, Any]] = {
    "random-resized crop": {},
    "centre crop": {"crop": "centre"},
    "pad and crop": {"crop": "pad", "pad": 16},
    "vertical flip": {"vflip": 0.5},
    "rotation, linear": {"rotation": 30},
    "rotation, nearest": {"rotation": 30, "rotation_filter": "nearest"},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
    "saturation": {"saturation": 0.4},
    "hue": {"hue": 0.1},
    "all four": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "lighting": {"lighting": 0.1},
    "grayscale": {"grayscale": 1},
    "blur": {"blur": 1},
    "noise": {"noise": 1},
    "salt and pepper": {"salt_pepper": 1},
    "JPEG": {"jpeg": 1},
    "erasing": {"erase": 1},
    "TrivialAugmentWide": {"auto": "trivial"},
    "RandAugment": {"auto": "rand"},
    "AutoAugment": {"auto": "autoaugment"},
}
CPU, BATCH_SIZE, SEED = torch.device("cpu"), 50, 1
COST_REPEATS = 5
TILE, LABEL, COLUMNS, VIEWS = 84, 13, 9, 2  # of the sheet: pixels, pixels, tiles, tiles of a setting
AUTO_MAGNITUDES = {"Identity": 0, "ShearX": 0.4, "ShearY": -0.4, "TranslateX": 24, "TranslateY": -24, "Rotate": 40,
                   "Posterize": 2, "Solarize": 110}  # fmt: skip


def make_loader(shard_set: ShardSet, config: AugmentConfig, kind: Any = DaliLoader, size: int = 224) -> Any:
    split = shard_set.split("train")
    batch_size = min(BATCH_SIZE, len(split))
    feed = Feed(split=split, config=DataConfig(image_size=size), augment=config, batch_size=batch_size,
                global_batch_size=batch_size, seed=SEED)  # fmt: skip
    return DaliLoader(feed, device=CPU, threads=2) if kind is DaliLoader else kind(feed, device=CPU, workers=0)


def gray_levels(loader: Any, epoch: int = 0) -> Iterator[np.ndarray]:
    """The batches as (n, S, S, 3) in grey levels 0–255."""
    mean, std = np.array(loader.feed.config.mean), np.array(loader.feed.config.std)
    for batch in loader.iter_epoch(epoch):
        yield batch.images.permute(0, 2, 3, 1).numpy() * std + mean


@click.group()
def main() -> None:
    """The augmentations: a picture, differences, cost."""


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--max-images", default=500, show_default=True)
def difference(data: Path, max_images: int) -> None:
    """Mean absolute difference to torchvision with the same draws, in grey levels."""
    shard_set = ShardSet.open(data)
    click.echo("| | mean | median image | worst image |\n| --- | --- | --- | --- |")
    for name, settings in CASES.items():
        config, found, by_op = AugmentConfig(**settings), [], {op: [] for op in OPS}  # type: ignore[var-annotated]
        with (
            closing(make_loader(shard_set, config)) as ours,
            closing(make_loader(shard_set, config, ReferenceLoader)) as theirs,
        ):
            for span, a, b in zip(ours.feed.spans(0), gray_levels(ours), gray_levels(theirs), strict=True):
                found += np.abs(a - b).mean((1, 2, 3)).tolist()
                if settings.get("auto") == "trivial":
                    for op, value in zip(
                        ours.feed.batch(0, span, 224).params["auto_op"][:, 0], found[-len(a) :], strict=True
                    ):
                        by_op[OPS[op]].append(value)
                if len(found) >= max_images:
                    break
        for label, values in [(name, found)] + [(f"… {op}", values) for op, values in by_op.items() if values]:
            click.echo(f"| {label} | {np.mean(values):.2f} | {np.median(values):.2f} | {max(values):.2f} |")


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
def cost(data: Path) -> None:
    """CPU time an image, and what an augmentation adds to the first line, each case in turn with it."""
    shard_set = ShardSet.open(data)
    click.echo("| | ms an image | added |\n| --- | --- | --- |")

    def cpu_ms(loader: DaliLoader, epoch: int) -> float:
        count, start_s = 0, time.process_time()
        for batch in loader.iter_epoch(epoch):
            count += len(batch.labels)
        return 1000 * (time.process_time() - start_s) / count

    plain = make_loader(shard_set, AugmentConfig())
    cpu_ms(plain, 0)
    for name, settings in CASES.items():
        with closing(make_loader(shard_set, AugmentConfig(**settings))) as loader:
            cpu_ms(loader, 0)  # builds the graph
            pairs = [(cpu_ms(plain, epoch), cpu_ms(loader, epoch)) for epoch in range(1, COST_REPEATS + 1)]
        added = statistics.median(b - a for a, b in pairs)
        click.echo(f"| {name} | {statistics.median(b for _, b in pairs):.2f} | {added:+.2f} |")
    plain.close()


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
def sheet(out: Path) -> None:
    """A picture of them all on a drawn scene."""
    tiles = [("as it is", scene(TILE))]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(VIEWS):
            path = Path(folder, "images", "train", "scene", f"{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene(240)).save(path, quality=95)
        pack(Path(folder, "images"), Path(folder, "packed"), PackOptions(workers=1))
        shard_set = ShardSet.open(Path(folder, "packed"))
        whole = {"crop": "centre", "crop_fraction": 1.0, "hflip": 0.0}
        for name, settings in CASES.items():
            if "auto" in settings:
                continue
            crop = "crop" in settings or not settings
            with closing(
                make_loader(shard_set, AugmentConfig(**(settings if crop else whole | settings)), size=TILE)
            ) as loader:
                (images,) = gray_levels(loader)
            name = name.replace("random-resized", "resized")
            tiles += [(name, np.rint(image).clip(0, 255).astype(np.uint8)) for image in images]
    magnitudes = np.array([[AUTO_MAGNITUDES.get(op, 0.9)] for op in OPS], np.float32)
    tiles += zip((f"{op}" for op in OPS), apply_each(np.stack([scene(TILE)] * len(OPS)), magnitudes), strict=True)
    rows = -(-len(tiles) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (TILE + 2), rows * (TILE + LABEL)), "white")
    pen = ImageDraw.Draw(canvas)
    for place, (name, pixels) in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        canvas.paste(Image.fromarray(pixels), (column * (TILE + 2), row * (TILE + LABEL) + LABEL))
        pen.text((column * (TILE + 2), row * (TILE + LABEL)), name, "black", font_size=9)
    canvas.save(out, optimize=True)
    click.echo(f"{out}: {len(tiles)} tiles, {out.stat().st_size} bytes")


def apply_each(pixels: np.ndarray, magnitudes: np.ndarray) -> list[np.ndarray]:
    """Operation i of `auto.OPS` on image i."""
    from nvidia.dali import Pipeline, fn

    params = {"auto_op": np.arange(len(OPS))[:, None], "auto_magnitude": magnitudes}
    arrays = step_arrays(params, AugmentConfig(auto="trivial"), pixels.shape[1])
    pipe = Pipeline(batch_size=len(pixels), num_threads=1, device_id=None)
    with pipe:
        inputs = [list(pixels), *map(list, arrays.values())]
        images, *nodes = fn.external_source(lambda: inputs, num_outputs=len(inputs), batch=True)
        pipe.set_outputs(augment_images(images, dict(zip(arrays, nodes, strict=True)), DataConfig()))
    pipe.build()
    (output,) = pipe.run()
    return [np.asarray(output.at(i)) for i in range(len(pixels))]


def scene(size: int) -> np.ndarray:
    """Hills, a lake and a house under an evening sky: (size, size, 3) uint8."""
    y, x = (np.mgrid[: 4 * size, : 4 * size] + 0.5) / (4 * size)
    image = np.array([250, 190, 120]) * y[..., None] ** 0.7 + np.array([70, 110, 190]) * (1 - y[..., None] ** 0.7)
    image[np.hypot(x - 0.72, y - 0.3) < 0.09] = (255, 240, 190)
    for base, colour, waves in ((0.5, (92, 104, 138), 5), (0.6, (60, 92, 74), 9), (0.7, (38, 66, 40), 17)):
        line = base + 0.05 * np.sin(waves * x + base * 40) + 0.015 * np.sin(4.1 * waves * x)
        image[y > line] = colour
    lake = y > 0.8 + 0.02 * np.sin(6 * x)
    image[lake] = (image[::-1][lake] * 0.6 + np.array([30, 60, 90]) * 0.4) * (1 + 0.1 * np.sin(160 * y[lake]))[:, None]
    walls, roof = (abs(x - 0.3) < 0.11) & (abs(y - 0.71) < 0.075), (y < 0.64) & (y - 0.52 > abs(x - 0.3) * 0.8)
    image[walls], image[roof] = (226, 214, 196), (158, 54, 44)
    image[(abs(abs(x - 0.3) - 0.055) < 0.022) & (abs(y - 0.7) < 0.025)] = (64, 84, 110)
    image[(abs(x - 0.3) < 0.02) & (y > 0.7) & (y < 0.785)] = (110, 70, 44)
    for trunk in (0.07, 0.52, 0.6, 0.88):
        image[(y > 0.52) & (y < 0.8) & (abs(x - trunk) < 0.16 * (y - 0.5) * (1 - 0.35 * np.sin(60 * y)))] = (24, 74, 40)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()
