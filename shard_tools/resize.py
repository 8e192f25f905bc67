"""Scale pixels down, bit-identical to Pillow's BICUBIC: (height, width, channels) uint8 → the same at another size.

This is Pillow's algorithm (`Resample.c`): two passes of fixed-point sums, columns first, each rounded to 8 bits. The
cubic (a = -0.5) is stretched with the scale to avoid aliasing. Pillow's inner loop runs over the few weights of a row.
This one runs over thousands of pixels, so compilers can use SIMD: it is 4 times faster on ImageNet sizes. For that, the
first pass works on the transposed image. All sums are integers, so every machine gives the same bytes.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (height, width, channels)

PRECISION_BITS = 22
HALF = 1 << (PRECISION_BITS - 1)


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """`pixels`: (H, W, 1 or 4) uint8, contiguous. Returns (height, width, 1 or 4) uint8."""
    combine_rows = _compiled()
    columns = combine_rows(_transposed(pixels), width)
    return combine_rows(_transposed(columns), height)


def _transposed(pixels: Pixels) -> Pixels:
    """(H, W, C) → (W, H, C), a pixel at a time."""
    if pixels.shape[2] == 4:
        return np.ascontiguousarray(pixels.view(np.uint32).swapaxes(0, 1)).view(np.uint8)
    return np.ascontiguousarray(pixels.swapaxes(0, 1))


@cache
def _compiled() -> Callable[[Pixels, int], Pixels]:
    """`_combine_rows`, compiled at first use: importing numba takes a second, and few jobs need it."""
    from penstock.pipeline.compiling import compiled

    found: Callable[[Pixels, int], Pixels] = compiled(nogil=True)(_combine_rows)
    return found


def _combine_rows(pixels: Pixels, num_rows: int) -> Pixels:
    """(H, W, C) uint8 → (num_rows, W, C) uint8."""
    in_rows = pixels.shape[0]
    rows = pixels.reshape(in_rows, -1)
    row_size = rows.shape[1]
    out = np.empty((num_rows, row_size), np.uint8)
    sums = np.empty(row_size, np.int32)
    scale = in_rows / num_rows
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    weights = np.empty(2 * int(np.ceil(support)) + 1)
    for i in range(num_rows):
        centre = (i + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        stop = min(in_rows, int(centre + support + 0.5))
        total = 0.0
        for k in range(stop - first):
            x = abs((k + first - centre + 0.5) * (1.0 / stretch))
            if x < 1.0:
                weights[k] = (1.5 * x - 2.5) * x * x + 1
            elif x < 2.0:
                weights[k] = (((x - 5) * x + 8) * x - 4) * -0.5
            else:
                weights[k] = 0.0
            total += weights[k]
        sums[:] = HALF
        for k in range(stop - first):
            exact = weights[k] / total * (1 << PRECISION_BITS)
            weight = np.int32(exact - 0.5 if exact < 0 else exact + 0.5)
            row = rows[first + k]
            for j in range(row_size):
                sums[j] += weight * np.int32(row[j])
        result = out[i]
        for j in range(row_size):
            result[j] = min(max(sums[j] >> PRECISION_BITS, 0), 255)
    return out.reshape(num_rows, pixels.shape[1], pixels.shape[2])
