"""Make a synthetic image set that needs no download: 5 shapes × 2 textures = 10 classes, packed like any other.

A picture shows one shape, filled with stripes or a checkerboard, at a random place, size and tilt, in random colours,
on a cluttered and noisy background. Neither colour, texture nor shape alone determines the class. A small ResNet at
32 px reaches 0.98 in 19 epochs, a minute on two cores. The object covers at least two thirds of the shorter side, the
texture's period is at least 17% of it (5 px at 32 px), and object and background always differ in colour.
"""

import fcntl
import glob
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penstock.shard_tools.execute import PackProgress
from penstock.shard_tools.workers import missing_semaphores, num_cpus, process_pool
from penstock.shard_tools.writer import Packed, PackOptions, pack
from penstock.shards.format import INFO_FILE
from penstock.shards.program import SHARD_TOOLS

Coordinates = NDArray[np.floating]  # (height, width)
Pixels = NDArray[np.uint8]
NUM_IMAGES = {"train": 3000, "val": 1000}


def disc(x: Coordinates, y: Coordinates) -> Coordinates:
    return np.hypot(x, y) - 0.95


def ring(x: Coordinates, y: Coordinates) -> Coordinates:
    return np.abs(np.hypot(x, y) - 0.72) - 0.28


def cross(x: Coordinates, y: Coordinates) -> Coordinates:
    x, y = np.abs(x), np.abs(y)
    distance: Coordinates = np.minimum(np.maximum(x - 0.34, y - 1), np.maximum(y - 0.34, x - 1))
    return distance


def triangle(x: Coordinates, y: Coordinates) -> Coordinates:
    return np.maximum(np.maximum(0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y), y) - 0.55


def star(x: Coordinates, y: Coordinates) -> Coordinates:
    """Five points: fold the plane into one of ten sectors, in which the outline is a straight line."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    angle = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    inner = 0.52 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    normal = np.array([inner[1], 1.05 - inner[0]]) / np.hypot(inner[1], 1.05 - inner[0])
    distance: Coordinates = (radius * np.cos(angle) - 1.05) * normal[0] + radius * np.sin(angle) * normal[1]
    return distance


def stripes(x: Coordinates, y: Coordinates) -> Coordinates:
    which: Coordinates = np.sin(2 * np.pi * x)
    return which


def checker(x: Coordinates, y: Coordinates) -> Coordinates:
    which: Coordinates = 1.5 * np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y)
    return which


# Shapes: coordinates in units of the object's radius → signed distance to the outline, negative inside.
SHAPES = {f.__name__: f for f in (cross, disc, ring, star, triangle)}
# Textures: coordinates in units of the period → which of two colours, by the sign.
TEXTURES = {f.__name__: f for f in (checker, stripes)}
CLASSES = [(shape, texture) for shape in SHAPES for texture in TEXTURES]


def draw(shape: str, texture: str, rng: np.random.Generator) -> Pixels:
    """One picture: (height, width, 3) uint8, shorter side 48 to 112, aspect ratio 3:4 to 4:3."""
    side = int(rng.integers(48, 113))
    longer = round(side * rng.uniform(1, 4 / 3))
    height, width = (side, longer) if rng.random() < 0.5 else (longer, side)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    first, second, background = _colours(rng)

    image = np.empty((height, width, 3), np.float32)
    image[:] = background
    for _ in range(int(rng.integers(3, 8))):  # clutter: small blobs and thin bars behind the object
        cx, cy, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, np.pi)
        u, v = _turned(x - cx, y - cy, angle)
        long, short = side * rng.uniform(0.04, 0.25), side * rng.uniform(0.02, 0.06)
        image[np.maximum(np.abs(u) / long, np.abs(v) / short) < 1] = rng.uniform(0, 255, 3)

    radius = side * rng.uniform(0.34, 0.47)
    cx = rng.uniform(radius, width - radius) + side * rng.uniform(-0.04, 0.04)
    cy = rng.uniform(radius, height - radius) + side * rng.uniform(-0.04, 0.04)
    u, v = _turned(x - cx, y - cy, rng.uniform(-0.4, 0.4))  # up to 23° either way
    inside = np.clip(0.5 - SHAPES[shape](u / radius, v / radius) * radius, 0, 1)[..., None]  # antialiased
    period = side * rng.uniform(0.17, 0.24)
    u, v = _turned(x - cx, y - cy, rng.uniform(0, 2 * np.pi))
    phase = rng.uniform(0, 1, 2)
    sign = TEXTURES[texture](u / period + phase[0], v / period + phase[1]) * period / 4
    filled = np.clip(0.5 + sign, 0, 1)[..., None]
    image += inside * (first * filled + second * (1 - filled) - image)

    slope = rng.uniform(-0.25, 0.25, 2)  # uneven light
    image *= (1 + slope[0] * (x / width - 0.5) + slope[1] * (y / height - 0.5))[..., None]
    image += rng.normal(0, rng.uniform(2, 12), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _colours(rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, 3) RGB: two of the object, one of the background, each well apart from the others in brightness or hue."""
    while True:
        colours = rng.uniform(10, 245, (3, 3))
        apart = np.linalg.norm(colours - np.roll(colours, 1, axis=0), axis=1)
        if apart.min() > 125:
            return colours


def _turned(x: Coordinates, y: Coordinates, angle: float) -> tuple[Coordinates, Coordinates]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def write_images(root: Path, split: str, start: int, stop: int, seed: int) -> None:
    """Images `start` to `stop` of a split, each a function of (seed, split, number) alone."""
    for number in range(start, stop):
        shape, texture = CLASSES[number % len(CLASSES)]
        rng = np.random.default_rng([seed, number, *split.encode()])
        path = root / split / f"{shape}-{texture}" / f"{number:06d}.jpg"
        Image.fromarray(draw(shape, texture, rng)).save(path, quality=int(rng.integers(70, 96)))


def _lock(directory: Path) -> int | None:
    """Lock the directory for this process; returns a descriptor, or None if another process has locked it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def make_demo(
    out: str | os.PathLike[str],
    num_images: dict[str, int] = NUM_IMAGES,
    seed: int = 0,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[PackProgress], None] = lambda progress: None,
    chunk: int = 250,
) -> Packed:
    """Draw the set in a temporary directory beside `out`, pack it into `out` in about 6 shards, and remove the images.

    Raises:
        ValueError: as `pack`.
    """
    out = Path(out)
    try:
        with _images_dir(out) as images:
            for split in num_images:
                for shape, texture in CLASSES:
                    (images / split / f"{shape}-{texture}").mkdir(parents=True)
            with nullcontext(executor) if executor else process_pool(workers or num_cpus()) as pool:
                chunks = [
                    pool.submit(write_images, images, split, start, min(start + chunk, count), seed)
                    for split, count in num_images.items()
                    for start in range(0, count, chunk)
                ]
                for future in chunks:
                    future.result()
                options = PackOptions(samples_per_shard=max(1, -(-max(num_images.values()) // 5)), seed=seed)
                return pack(images, out, options, executor=pool, progress=progress)
    except OSError as error:
        raise ValueError(f"{error.filename or out}: cannot be written ({error.strerror})") from None


@contextmanager
def _images_dir(out: Path) -> Iterator[Path]:
    """Make a locked directory beside `out` for the duration of the `with` block; remove those of killed runs."""
    prefix = f".{out.name}-images-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in out.parent.glob(f"{glob.escape(prefix)}*"):
            if (lock := _lock(stale)) is not None:
                shutil.rmtree(stale, ignore_errors=True)
                os.close(lock)
        images = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        lock = _lock(images)
    except OSError as error:
        raise ValueError(f"{out.parent}: cannot be written ({error.strerror})") from None
    try:
        yield images
    finally:
        shutil.rmtree(images, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def ensure_demo(out: Path, say: Callable[[str], None] = print) -> None:
    """Make the set in `out` unless it exists. A separate process does this, so its workers import less.

    Raises:
        ValueError: the set could not be made; the separate process has printed the reason on stderr.
    """
    if (out / INFO_FILE).exists():
        return
    say(f"making the {sum(NUM_IMAGES.values()):,} demo images in {out} (only needed once)")
    search = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    workers = ["--workers", "1"] if missing_semaphores() else []  # a container without /dev/shm can train anyway
    command = [sys.executable, "-m", "penstock", "demo", str(out), *workers]
    made = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}, stdout=subprocess.DEVNULL, check=False)
    if made.returncode:
        elsewhere = f"make them elsewhere with {SHARD_TOOLS} demo DIR, and use --data DIR"
        raise ValueError(f"{out}: could not make the demo images; {elsewhere}")
