"""Augmentations: settings → parameters drawn by the plan → steps for the graph. NumPy only, no pixel is touched here.

    config.py     `AugmentConfig`, the `[augment]` section of a recipe, and its presets
    draw.py       (seed, epoch, position) → parameters that people read: degrees, factors, pixels; one row a sample
    geometry.py, colour.py, noise.py, auto.py   what `draw.py` calls: the law of each augmentation
    steps.py      parameters → the steps of the graph: matrices, kernels, masks

`pipeline/augment/graph.py` executes the steps with DALI, and on the CPU with the compiled kernels of `kernel.py`;
`pipeline/augment/reference.py` executes what was drawn with torchvision and Pillow, as the oracle. Each augmentation
draws from a stream of its own, so that switching one on leaves the others' draws as they were. To add one: a setting in
config.py, a line in draw.py, a step in steps.py, and its execution in those two.
"""

from penstock.pipeline.augment.config import AugmentConfig
from penstock.pipeline.augment.draw import train_params
from penstock.pipeline.augment.geometry import centre_crop_params
from penstock.pipeline.augment.params import AugmentParams

__all__ = ["AugmentConfig", "AugmentParams", "centre_crop_params", "train_params"]
