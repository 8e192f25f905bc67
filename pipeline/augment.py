"""Augmentations: their settings, and their parameters drawn from the plan. NumPy only; `graph.py` executes them.

To add one: a field in `AugmentConfig`, a function here that turns uniform draws into named per-sample arrays, a line
in `train_params`, and its execution in `graph.py` and (as the oracle) `reference.py`. Each augmentation draws from
a stream of its own, so switching one on leaves the others' draws as they were.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from pipeline.plan import EpochPlan

AugmentParams = dict[str, np.ndarray]  # name → one row a sample
_ATTEMPTS = 10  # tries of RandomResizedCrop before it falls back to a centre crop, as in torchvision


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation. Ranges as in torchvision's transforms of the same names.

    crop: "random_resized"; or "pad", for small images: the whole image at image_size, moved by up to `pad` pixels up or
        down and left or right, black where nothing is left (torchvision's `RandomCrop` with `padding`).
    scale, ratio: area (as a fraction of the image's) and aspect ratio (width / height) of the random-resized crop.
    hflip: probability of a horizontal flip.
    brightness, contrast, saturation: the factor is uniform in [max(0, 1 - x), 1 + x]; 0 switches it off.
    hue: the shift is uniform in [-x, x] turns of the colour circle, at most 0.5; 0 switches it off.
    """

    crop: Literal["random_resized", "pad"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    hflip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        unread = ("scale", "ratio") if self.crop == "pad" else ("pad",)
        for field in fields(self):
            if field.name in unread and getattr(self, field.name) != field.default:
                raise ValueError(f'{field.name}: has no effect with crop = "{self.crop}"; leave it out')
        if not self.pad >= 0:
            raise ValueError(f"pad: {self.pad} must be 0 or more")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: {self.scale} must satisfy 0 < low ≤ high ≤ 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: {self.ratio} must satisfy 0 < low ≤ high")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip: {self.hflip} must be a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue: {self.hue} must lie in 0 to 0.5")

    @property
    def jitters_colour(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))


def random_resized_crop(
    draws: np.ndarray, heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> AugmentParams:
    """Crop boxes by the law of torchvision's `RandomResizedCrop.make_params` (Szegedy et al. 2014).

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
    """The whole image, and by how much it moves.

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


def colour_jitter(draws: np.ndarray, config: AugmentConfig) -> AugmentParams:
    """Factors for brightness, contrast and saturation, and the hue shift in degrees: (n,) float32 each.

    Args:
        draws: (n, 4) uniform in [0, 1).
    """

    def factor(column: int, strength: float) -> np.ndarray:
        low = max(0.0, 1.0 - strength)
        return (low + draws[:, column] * (1.0 + strength - low)).astype(np.float32)

    hue = ((2 * draws[:, 3] - 1) * config.hue * 360).astype(np.float32)
    return {
        "brightness": factor(0, config.brightness),
        "contrast": factor(1, config.contrast),
        "saturation": factor(2, config.saturation),
        "hue": hue,
    }


def train_params(
    plan: EpochPlan, config: AugmentConfig, start: int, heights: np.ndarray, widths: np.ndarray
) -> AugmentParams:
    """The parameters of the training augmentation at positions start…start+n-1.

    Args:
        heights, widths: (n,) pixels of the samples at these positions.

    Returns:
        anchor, shape (and shift): see `random_resized_crop` and `pad_crop`; mirror: (n,) int32, 1 to flip; with colour
        jitter on, also what `colour_jitter` returns.
    """
    n = len(heights)
    if config.crop == "pad":
        params = pad_crop(plan.uniforms("pad_crop", start, n, 2), heights, widths, config.pad)
    else:
        draws = plan.uniforms("random_resized_crop", start, n, 2 * _ATTEMPTS + 2)
        params = random_resized_crop(draws, heights, widths, config.scale, config.ratio)
    params["mirror"] = (plan.uniforms("hflip", start, n, 1)[:, 0] < config.hflip).astype(np.int32)
    if config.jitters_colour:
        params |= colour_jitter(plan.uniforms("colour_jitter", start, n, 4), config)
    return params


def centre_crop_params(heights: np.ndarray, widths: np.ndarray, image_size: int, resize_size: int) -> AugmentParams:
    """Validation: resize the shorter side to `resize_size`, crop the centre `image_size` square, in one resampling.

    The numbers are torchvision's (`Resize`, then `CenterCrop`); the crop window is mapped back into the stored image,
    and only the pixels that the antialiasing filter reaches are decoded.

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
