"""Images stored as pixels: tar members in binary PPM format, which Pillow, DALI and WebDataset readers can open.

The header is the shortest possible one, as Pillow writes it, so the table alone determines where the pixels begin.
The format: netpbm.sourceforge.net/doc/ppm.html.
"""

import numpy as np

from penstock.shards.format import CHECKED_ROWS, Samples

EXTENSION = "ppm"


def ppm_header(height: int, width: int) -> bytes:
    """The bytes before the (height, width, 3) uint8 values of an image."""
    return b"P6\n%d %d\n255\n" % (width, height)


def to_ppm(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8, RGB → the file."""
    return ppm_header(*pixels.shape[:2]) + pixels.tobytes()


def header_sizes(samples: Samples) -> np.ndarray:
    """The PPM header size of each row of a table, or 0 if the row's size does not fit a PPM file.

    samples: (n,) SAMPLE_DTYPE. Returns (n,) int64. A JPEG may happen to have a fitting size; `is_ppm` checks the bytes.
    """
    heights, widths = samples["height"].astype(np.int64), samples["width"].astype(np.int64)
    lengths = len(ppm_header(1, 1)) - 2 + _num_digits(heights) + _num_digits(widths)
    return np.where(samples["size"] == lengths + 3 * heights * widths, lengths, 0)


def may_have_pixels(samples: Samples) -> bool:
    """Whether any row of a table has the size of a PPM file. Reads the table in pieces, up to the first such row."""
    pieces = (samples[start : start + CHECKED_ROWS] for start in range(0, len(samples), CHECKED_ROWS))
    return any(header_sizes(rows).any() for rows in pieces)


def is_ppm(data: np.ndarray, height: int, width: int) -> bool:
    """Whether a member, (size,) uint8, is a PPM file of this height and width."""
    header = ppm_header(height, width)
    return len(data) == len(header) + 3 * height * width and data[: len(header)].tobytes() == header


def _num_digits(numbers: np.ndarray) -> np.ndarray:
    """(n,) from 1 to 65,535 → (n,) int64."""
    return 1 + np.searchsorted([10, 100, 1_000, 10_000], numbers, side="right")
