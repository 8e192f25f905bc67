"""The image whose colours tell where a crop of it was cut out; `observe.describe_crops` reads them."""

import numpy as np

WIDTH, HEIGHT = 320, 240
BLUE = 128


def image() -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: red grows from 0 at the left to 255 at the right, green so from top to bottom."""
    red = np.linspace(0, 255, WIDTH)[None, :].repeat(HEIGHT, axis=0)
    green = np.linspace(0, 255, HEIGHT)[:, None].repeat(WIDTH, axis=1)
    return np.stack([red, green, np.full_like(red, BLUE)], axis=-1).round().astype(np.uint8)
