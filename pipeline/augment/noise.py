"""Degradations: blur, Gaussian and salt-and-pepper noise, JPEG compression, random erasing.

A noise field is a hash of (key of the sample, row, column and channel). Like all draws of the plan it is a function of
the position in the epoch, while DALI's own noise operators draw from a state that depends on the batch. The plan hashes
the rows and columns, four values for each pixel of the image's side. The graph combines them to a field in integer
arithmetic, with the same result on CPU and GPU.
"""

import numpy as np

UINT32 = 2**32
MIX = (0x7FEB352D, 0x846CA68B)  # the multipliers of "lowbias32" (C. Wellons, hash-prospector)
SECOND = 0x9E3779B1  # 2³² / golden ratio: a second, independent enough value from a hash
_TRIES = 10


def noise_keys(draws: np.ndarray) -> np.ndarray:
    """(n, 2) uniform in [0, 1) → (n, 2) uint32: one key for the rows, one for the columns."""
    keys: np.ndarray = (draws * UINT32).astype(np.uint32)
    return keys


def hashed_lines(keys: np.ndarray, length: int) -> np.ndarray:
    """(n,) uint32 keys → (n, length) uint32, a random word for each row or column."""
    x = keys[:, None] + np.arange(1, length + 1, dtype=np.uint32) * np.uint32(SECOND)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(MIX[0])
    x = (x ^ (x >> np.uint32(15))) * np.uint32(MIX[1])
    words: np.ndarray = x ^ (x >> np.uint32(16))
    return words


def hashed_field(keys: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The field of random words that the graph makes: (n, 2) uint32 keys → (n, rows, columns) uint32."""
    x = hashed_lines(keys[:, 0], rows)[:, :, None] ^ hashed_lines(keys[:, 1], columns)[:, None]
    x = x * np.uint32(MIX[0])
    field: np.ndarray = (x ^ (x >> np.uint32(16))) * np.uint32(MIX[1])
    return field


def gaussian_field(keys: np.ndarray, image_size: int) -> np.ndarray:
    """(n, 2) uint32 keys → (n, S, S, 3) float32, standard normal (Box and Muller 1958)."""
    bits = hashed_field(keys, image_size, 3 * image_size)
    radius = np.sqrt(-2 * np.log((bits + 0.5) / UINT32))
    angle = 2 * np.pi / UINT32 * (bits * np.uint32(SECOND))
    field: np.ndarray = (radius * np.cos(angle)).astype(np.float32)
    return field.reshape(len(keys), image_size, image_size, 3)


def salt_pepper_threshold(amount: np.ndarray) -> np.ndarray:
    """(n,) fractions → (n,) uint32 thresholds t: a hash below t is pepper, one above 2³² - 1 - t is salt."""
    return (np.asarray(amount, np.float64) / 2 * (UINT32 - 1)).astype(np.uint32)


def in_range(draws: np.ndarray, on: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """(n,) draws uniform in [0, 1) → float32 uniform in the bounds where `on`, 0 elsewhere."""
    low, high = bounds
    return np.where(on, low + draws * (high - low), 0).astype(np.float32)


def quality(draws: np.ndarray, on: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """(n,) draws → int32, one of the whole numbers of the range with equal probability; 0 where not `on`."""
    low, high = bounds
    return np.where(on, low + (draws * (high - low + 1)).astype(np.int32), 0).astype(np.int32)


def erased_box(
    draws: np.ndarray, on: np.ndarray, image_size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """A box with the distribution of torchvision's `RandomErasing` (Zhong et al. 2017). If no box fits, none is erased.

    Args:
        draws: (n, 22) uniform in [0, 1): ten (area, ratio) tries, then row and column.

    Returns:
        (n, 4) int32: top, left, height, width in pixels; zeros where nothing is erased.
    """
    areas = image_size**2 * (scale[0] + draws[:, :_TRIES] * (scale[1] - scale[0]))
    low, high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(low + draws[:, _TRIES : 2 * _TRIES] * (high - low))
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights < image_size) & (widths < image_size)
    first = fits.argmax(axis=1), np.arange(len(draws))
    height, width = heights[first[::-1]], widths[first[::-1]]
    top, left = draws[:, -2] * (image_size - height + 1), draws[:, -1] * (image_size - width + 1)
    box = np.stack([top, left, height, width], 1)
    return np.where((on & fits.any(axis=1))[:, None], box, 0).astype(np.int32)


def blur_kernels(sigma: np.ndarray, radius: int) -> np.ndarray:
    """(n,) standard deviations in pixels → (n, 2 × radius + 1) float32 weights, each row of sum 1."""
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    kernels: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return kernels


def blur_radius(sigma_max: float) -> int:
    """Pixels on each side of the kernel: three standard deviations of the widest."""
    return max(1, int(np.ceil(3 * sigma_max)))
