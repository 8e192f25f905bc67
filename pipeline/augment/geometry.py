"""Geometry: crops, and the matrices of rotation, shear and translation."""

import numpy as np

from penstock.pipeline.augment.params import AugmentParams

_ATTEMPTS = 10  # tries of RandomResizedCrop before it falls back to a centre crop, as in torchvision


def random_resized_crop(
    draws: np.ndarray, heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> AugmentParams:
    """Crop boxes with the distribution of torchvision's `RandomResizedCrop.make_params` (Szegedy et al. 2014).

    Args:
        draws: (n, 22) uniform in [0, 1): ten (area, ratio) tries, then row and column.
        heights, widths: (n,) pixels of the stored images.

    Returns:
        anchor: (n, 2) int32, top and left in pixels; shape: (n, 2) int32, height and width in pixels.
    """
    height, width = heights.astype(np.float64)[:, None], widths.astype(np.float64)[:, None]
    areas = height * width * (scale[0] + draws[:, 0:_ATTEMPTS] * (scale[1] - scale[0]))
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(log_low + draws[:, _ATTEMPTS : 2 * _ATTEMPTS] * (log_high - log_low))
    crop_w, crop_h = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (crop_w > 0) & (crop_w <= width) & (crop_h > 0) & (crop_h <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(len(draws))
    crop_h, crop_w, any_fits = crop_h[rows, first], crop_w[rows, first], fits[rows, first]

    height, width = height[:, 0], width[:, 0]
    too_tall, too_wide = width / height < ratio[0], width / height > ratio[1]
    centre_h = np.maximum(1, np.where(too_tall, np.rint(width / ratio[0]), height))
    centre_w = np.maximum(1, np.where(too_wide, np.rint(height * ratio[1]), width))
    crop_h, crop_w = np.where(any_fits, crop_h, centre_h), np.where(any_fits, crop_w, centre_w)
    top, left = draws[:, -2] * (height - crop_h + 1), draws[:, -1] * (width - crop_w + 1)
    top = np.where(any_fits, top, (height - crop_h) // 2)
    left = np.where(any_fits, left, (width - crop_w) // 2)
    return {
        "anchor": np.stack([top, left], 1).astype(np.int32),
        "shape": np.stack([crop_h, crop_w], 1).astype(np.int32),
    }


def pad_crop(draws: np.ndarray, heights: np.ndarray, widths: np.ndarray, pad: int) -> AugmentParams:
    """The whole image as the crop, and its shift.

    Args:
        draws: (n, 2) uniform in [0, 1).
        heights, widths: (n,) pixels of the stored images.
        pad: pixels of the output image.

    Returns:
        anchor, shape: (n, 2) int32, the whole stored image; shift: (n, 2) int32, the output's top left corner in the
        resized image, row and column, each in -pad…pad.
    """
    shape = np.stack([heights, widths], 1).astype(np.int32)
    shift = (draws * (2 * pad + 1)).astype(np.int32) - pad
    return {"anchor": np.zeros_like(shape), "shape": shape, "shift": shift}


def centre_crop_params(heights: np.ndarray, widths: np.ndarray, image_size: int, resize_size: int) -> AugmentParams:
    """Validation: resize the shorter side to `resize_size` and crop the centre `image_size` square, in one resampling.

    The sizes are torchvision's (`Resize`, then `CenterCrop`). The crop window is mapped back into the stored image, and
    only the pixels that the antialiasing filter reaches are decoded.

    Args:
        heights, widths: (n,) pixels of the stored images.
        image_size, resize_size: pixels, image_size ≤ resize_size.

    Returns:
        anchor, shape: (n, 2) int32, the region to decode; roi_start, roi_end: (n, 2) float32, the window's corners
        inside that region, in pixels (row, column).
    """
    sides = np.stack([heights, widths], 1).astype(np.int64)
    short = sides.min(axis=1, keepdims=True)
    resized = np.where(sides == short, resize_size, resize_size * sides // short)
    corner = np.rint((resized - image_size) / 2.0)
    step = sides / resized  # stored pixels per output pixel
    start, end = corner * step, (corner + image_size) * step
    margin = np.ceil(np.maximum(step, 1.0)) + 1
    first = np.maximum(np.floor(start - margin), 0)
    last = np.minimum(np.ceil(end + margin), sides)
    return {
        "anchor": first.astype(np.int32),
        "shape": (last - first).astype(np.int32),
        "roi_start": (start - first).astype(np.float32),
        "roi_end": (end - first).astype(np.float32),
    }


def rotation(degrees: np.ndarray, image_size: int) -> np.ndarray:
    """Counter-clockwise about the centre: (n,) degrees → (n, 2, 3) float32, output pixel (x, y, 1) → input pixel."""
    angle, centre = np.deg2rad(degrees), image_size / 2
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [[cos, -sin, centre * (1 - cos + sin)], [sin, cos, centre * (1 - cos - sin)]]
    return np.moveaxis(np.array(rows), -1, 0).astype(np.float32)


def shear_or_move(*, shear_x: np.ndarray, shear_y: np.ndarray, move_x: np.ndarray, move_y: np.ndarray) -> np.ndarray:
    """Shears about the top left corner by a slope, or moves by whole pixels: (n,) each → (n, 2, 3), as `rotation`."""
    one = np.ones_like(shear_x)
    rows = [[one, shear_x, -np.trunc(move_x)], [shear_y, one, -np.trunc(move_y)]]
    return np.moveaxis(np.array(rows), -1, 0).astype(np.float32)
