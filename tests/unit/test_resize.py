"""The CPU's fused resize compared with Pillow (filters, windows) and torch (without antialiasing)."""

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipeline.config import Interpolation
from penstock.pipeline.resize import geometry
from penstock.pipeline.resize_kernel import INTERPOLATIONS, resize_image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PILLOW = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
# (height, width): shrinking, growing, neither, one pixel, one much more than the other, more taps than fit a register
SIZES = [(97, 131), (20, 33), (48, 48), (1, 1), (1, 300), (500, 7), (900, 1200)]


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng([height, width])
    coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def resized(
    image: np.ndarray,
    size: int,
    interpolation: Interpolation = "linear",
    antialias: bool = True,
    dtype: type = np.uint8,
    **params: object,
) -> np.ndarray:
    """(height, width, 3) uint8 → (size, size, 3)."""
    height, width = image.shape[:2]
    arrays = {name: np.array([value]) for name, value in ({"shape": (height, width)} | params).items()}
    row = geometry(arrays, interpolation=interpolation, antialias=antialias, mean=MEAN, std=STD)[0]
    out = np.full(size * size * 3 + 8, 77, dtype)  # what lies behind must not be written
    resize_image(np.ascontiguousarray(image).reshape(-1), height, width, 3 * width, row, out[:-8], size, size)
    assert (out[-8:] == 77).all()
    return out[:-8].reshape(size, size, 3)


def assert_close(ours: np.ndarray, theirs: np.ndarray, worst: int = 1, mean: float = 0.25) -> None:
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= worst
    assert difference.mean() <= mean


@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", PILLOW)
def test_filters_are_pillows(interpolation: Interpolation, height: int, width: int, size: int) -> None:
    image = picture(height, width)
    theirs = np.asarray(Image.fromarray(image).resize((size, size), PILLOW[interpolation]))
    # Pillow rounds and clips between its passes, which filters with negative lobes notice at hard edges
    assert_close(resized(image, size, interpolation), theirs, worst=1 if interpolation == "linear" else 8)


def test_nearest_is_pillows() -> None:
    image = picture(97, 131)
    theirs = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resized(image, 48, "nearest"), theirs)


@pytest.mark.parametrize(("height", "width"), [(97, 131), (20, 33)])
def test_without_antialiasing_it_is_torchs(height: int, width: int) -> None:
    image = picture(height, width)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(planes, (48, 48), mode="bilinear", antialias=False, align_corners=False)
    assert_close(resized(image, 48, antialias=False), theirs[0].permute(1, 2, 0).round().numpy(), mean=0.01)


@pytest.mark.parametrize("window", [(10.25, 7.5, 80.75, 99.0), (0.0, 0.0, 97.0, 131.0), (3.5, 3.5, 20.0, 24.125)])
def test_window(window: tuple[float, float, float, float]) -> None:
    image = picture(97, 131)
    top, left, bottom, right = window
    theirs = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    ours = resized(image, 64, roi_start=(top, left), roi_end=(bottom, right))
    # Pillow clips the filter at the box, ours reaches the pixels around it, as DALI's does: so the border may differ
    assert_close(ours[2:-2, 2:-2], np.asarray(theirs)[2:-2, 2:-2])


@pytest.mark.parametrize("vertical", [0, 1])
@pytest.mark.parametrize("horizontal", [0, 1])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_flips(interpolation: Interpolation, horizontal: int, vertical: int) -> None:
    image = picture(97, 131)
    plain = resized(image, 48, interpolation)
    flipped = resized(image, 48, interpolation, mirror=horizontal, flip_vertical=vertical)
    np.testing.assert_array_equal(flipped, plain[:: -1 if vertical else 1, :: -1 if horizontal else 1])


@pytest.mark.parametrize("shift", [(0, 0), (4, -3), (-4, 4), (48, 0), (-100, 100)])
@pytest.mark.parametrize("mirror", [0, 1])
def test_shift_moves_the_picture_over_black(shift: tuple[int, int], mirror: int) -> None:
    image = picture(97, 131)
    padded = np.zeros((48 + 200, 48 + 200, 3), np.uint8)
    padded[100:148, 100:148] = resized(image, 48)
    rows, columns = 100 + shift[0], 100 + shift[1]
    expected = padded[rows : rows + 48, columns : columns + 48]
    ours = resized(image, 48, shift=shift, mirror=mirror)
    np.testing.assert_array_equal(ours, expected[:, :: -1 if mirror else 1])


def test_float_output_is_the_rounded_one_normalised() -> None:
    image = picture(97, 131)
    expected = (resized(image, 64) - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(resized(image, 64, dtype=np.float32), expected, atol=1e-6)


def test_same_size_is_untouched() -> None:
    image = picture(48, 48)
    np.testing.assert_array_equal(resized(image, 48), image)
