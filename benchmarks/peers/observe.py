"""What a peer's batches are like, in numbers → dicts for JSON, which `check` judges.

NumPy alone: it also runs in the peers' environments.
"""

from typing import Any

import numpy as np

MARGIN = 0.1  # at each border of a crop, where the resize repeats pixels, this share is left out of the fit
DIGITS = 6


def describe(images: np.ndarray) -> dict[str, Any]:
    """Shape, dtype, whether all is finite; and of each image the mean and the mean square of each channel.

    The latter two are missing where the shape is not (N, 3, S, S).
    """
    finite = bool(np.isfinite(images).all())
    found: dict[str, Any] = {"shape": list(images.shape), "dtype": str(images.dtype), "finite": finite}
    if images.ndim == 4 and images.shape[1] == 3 and finite:
        values = images.astype(np.float64)
        found["means"] = values.mean(axis=(2, 3)).round(DIGITS).tolist()
        found["squares"] = (values**2).mean(axis=(2, 3)).round(DIGITS).tolist()
    return found


def describe_crops(images: np.ndarray, mean: list[float], std: list[float], size: list[int]) -> dict[str, list[Any]]:
    """Where each image was cut out, read from its colours.

    Args:
        images: (N, 3, S, S) normalised crops of an image whose red grows from 0 at its left to 255 at its right, whose
            green grows so from top to bottom, and whose blue is the same everywhere.
        mean, std: of the normalisation, three values in grey levels.
        size: width and height of the image in pixels.

    Returns:
        for each crop left, top, width and height as shares of the image's, flipped (left-right) and upside_down,
        blue in grey levels, and error: how far its colours are from a straight line, as a share of its sides.
    """
    levels = images.astype(np.float64) * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))
    left, width, flipped, error_x = interval(levels[:, 0].mean(axis=1), size[0])
    top, height, upside_down, error_y = interval(levels[:, 1].mean(axis=2), size[1])
    found = {
        "left": left, "top": top, "width": width, "height": height,
        "blue": levels[:, 2].mean(axis=(1, 2)), "error": np.maximum(error_x, error_y),
    }  # fmt: skip
    flips = {"flipped": flipped.tolist(), "upside_down": upside_down.tolist()}
    return {name: values.round(DIGITS).tolist() for name, values in found.items()} | flips


def interval(profile: np.ndarray, extent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N, S) grey levels along one axis → start and length of what they show, as shares of the image; whether it runs
    backwards; and the root mean square distance from the line, as a share of the length."""
    num_pixels = profile.shape[1]
    margin = int(num_pixels * MARGIN)
    inner = slice(margin, num_pixels - margin)
    places = (np.arange(num_pixels)[inner] + 0.5) / num_pixels  # of the crop, 0 to 1
    shown = (profile[:, inner] / 255 * (extent - 1) + 0.5) / extent  # of the image, 0 to 1
    slope = ((shown - shown.mean(axis=1, keepdims=True)) * (places - places.mean())).mean(axis=1) / places.var()
    begin = shown.mean(axis=1) - slope * places.mean()
    distance = np.sqrt(((shown - begin[:, None] - slope[:, None] * places) ** 2).mean(axis=1))
    length = np.abs(slope)
    return np.minimum(begin, begin + slope), length, slope < 0, distance / np.maximum(length, 1e-9)


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several batches' descriptions as one: what is told of each image follows each other; of shape, dtype and finite
    the one that differs from the first batch's counts."""
    whole = dict(parts[0])
    for part in parts[1:]:
        for name, value in part.items():
            if isinstance(value, list) and name != "shape":
                whole[name] = whole.get(name, []) + value
            elif value != parts[0][name]:
                whole[name] = value
    return whole
