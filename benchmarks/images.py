"""`--data synthetic:WxH`: JPEGs of any mean size that are as costly to decode as ImageNet's, packed once and kept.

They match ImageNet in everything that decoding time depends on, judging by 500 of its training images (469×401 px and
110 KB on average). Most images have one of a few shapes with 500 px on the longer side. The other sizes are spread
log-normally. Images have 0.58 bytes per pixel on average, with a wide spread. The quality is 95, and three quarters are
without chroma subsampling. Pixels are weakly coloured noise with the 1/f amplitude spectrum of natural images
(Field, 1987).
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from penstock.shard_tools.workers import num_cpus
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import INFO_FILE

PREFIX = "synthetic:"
FOLDER = Path("data")
SIDES = range(16, 2049)  # the mean sizes that are allowed
MIN_SIDE = 8
NUM_IMAGES = {"train": 1000, "val": 100}
NUM_CLASSES = 10
SHAPES = np.array([(500, 375), (500, 333), (375, 500), (333, 500), (400, 400), (500, 250)])
SHAPE_SHARES = (0.43, 0.28, 0.11, 0.09, 0.06, 0.03)
ODD_SHARE, ODD_SCALE, ODD_SIGMA = (
    0.4,
    0.95,
    0.45,
)  # share of images without 500 px; median and log's standard deviation of their scale
QUALITY, FULL_CHROMA = 95, 0.75
CONTRAST, CONTRAST_SIGMA = 13.5, 0.8  # grey levels: median over the images, and standard deviation of the log
TEXTURE_SIDE = 1024


def parse(data: str) -> tuple[int, int]:
    """Parse "synthetic:469x401" into (width, height). Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", data.removeprefix(PREFIX))
    width, height = map(int, found.groups()) if found else (0, 0)
    if width not in SIDES or height not in SIDES:
        raise ValueError(
            f"--data {data}: expected {PREFIX}WIDTHxHEIGHT, the mean size in pixels ({SIDES[0]} to {SIDES[-1]} each). "
            f"For example: {PREFIX}469x401"
        )
    return width, height


def folder_of(data: str, folder: Path = FOLDER) -> Path:
    """Return the folder of the packed set of "synthetic:WxH", whether or not it exists yet."""
    width, height = parse(data)
    return folder / f"synthetic-{width}x{height}"


def ensure(data: str, folder: Path = FOLDER, say: Callable[[str], None] = print) -> Path:
    """Return the packed set of "synthetic:WxH", and make it in `folder` if needed. Raises ValueError for a bad size."""
    width, height = parse(data)
    out = folder_of(data, folder)
    if not (out / INFO_FILE).exists():
        say(f"{out}: making {sum(NUM_IMAGES.values())} images of {width}x{height} px on average (only once)")
        make(out, width, height)
    return out


def make(out: Path, width: int, height: int) -> None:
    """Draw the images in class folders beside `out`, pack them into `out`, and remove the folders."""
    texture = pink_texture(TEXTURE_SIDE, np.random.default_rng(0))

    def write(path: Path, shape: np.ndarray, split: str, row: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(texture, shape, split, row))

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}-images-", dir=out.parent)
        with folder as images, ThreadPoolExecutor(num_cpus()) as pool:
            written = [
                pool.submit(
                    write, Path(images, split, f"class{row % NUM_CLASSES}", f"{row:06d}.jpg"), shape, split, row
                )
                for split, count in NUM_IMAGES.items()
                for row, shape in enumerate(sizes(width, height, count))
            ]
            for one in written:
                one.result()
            options = PackOptions(samples_per_shard=max(1, max(NUM_IMAGES.values()) // 4))
            pack(images, out, options, executor=pool)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise ValueError(f"{error.filename or out}: cannot be written ({error.strerror})") from None


def sizes(width: int, height: int, count: int) -> np.ndarray:
    """Draw widths and heights with the means `width` and `height`, to about a pixel: (count, 2) int."""
    rng = np.random.default_rng([count, width, height])
    shapes = SHAPES[rng.choice(len(SHAPES), count, p=SHAPE_SHARES)].astype(np.float64)
    odd = rng.random(count) < ODD_SHARE
    shapes *= np.where(odd, ODD_SCALE * rng.lognormal(0, ODD_SIGMA, count), 1.0)[:, None]
    shapes *= np.array([width, height]) / shapes.mean(axis=0)
    return np.maximum(np.rint(shapes), MIN_SIDE).astype(int)


def jpeg(texture: np.ndarray, shape: np.ndarray, split: str, row: int) -> bytes:
    """Return a JPEG of `shape` (width, height) that depends only on its split and row."""
    import simplejpeg  # type: ignore[import-untyped]

    rng = np.random.default_rng([row, *split.encode()])
    width, height = shape.tolist()
    pixels = picture(texture, width, height, rng)
    chroma = "444" if rng.random() < FULL_CHROMA else "420"
    encoded: bytes = simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", chroma)
    return encoded


def pink_texture(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return periodic 1/f noise, (side, side, 3) float32: luma and two chroma planes of standard deviation 1."""
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(fx, fy)
    frequency[0, 0] = np.inf  # no mean
    planes = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency, (side, side)) for _ in range(3)]
    return np.stack([plane / plane.std() for plane in planes], axis=2).astype(np.float32)


def picture(texture: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a window from the texture at random place, brightness and contrast: (height, width, 3) uint8 RGB."""
    top, left = rng.integers(len(texture), size=2)
    rows, columns = (top + np.arange(height)) % len(texture), (left + np.arange(width)) % len(texture)
    luma, blue, red = np.moveaxis(texture[rows[:, None], columns], 2, 0)
    contrast = np.float32(CONTRAST * rng.lognormal(0, CONTRAST_SIGMA))
    luma = luma + np.float32(0.25) * np.stack([1.4 * red, -0.34 * blue - 0.71 * red, 1.77 * blue])  # JFIF's YCbCr → RGB
    pixels = np.moveaxis(np.float32(rng.uniform(90, 150)) + contrast * luma, 0, 2)
    return np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
