"""Augmentations: settings → parameters drawn by the plan → steps for the graph. Only NumPy; no pixels are touched here.

    config.py     `AugmentConfig`, the `[augment]` section of a recipe, and its presets
    draw.py       (seed, epoch, position) → readable parameters (degrees, factors, pixels), one row for each sample
    geometry.py, colour.py, noise.py, auto.py   the distribution of each augmentation; `draw.py` calls them
    steps.py      parameters → the steps of the graph: matrices, kernels, masks

`pipeline/augment/graph.py` executes the steps with DALI, and on the CPU with the compiled kernels of `kernel.py`.
`pipeline/augment/reference.py` executes the parameters with torchvision and Pillow, for tests to compare. Each
augmentation has its own stream of draws, so that switching one on does not change the draws of the others. To add an
augmentation, write a setting in config.py, a line in draw.py, a step in steps.py, and its execution in graph.py and
reference.py.
"""

from penstock.pipeline.augment.config import AugmentConfig
from penstock.pipeline.augment.draw import train_params
from penstock.pipeline.augment.geometry import centre_crop_params
from penstock.pipeline.augment.params import AugmentParams

__all__ = ["AugmentConfig", "AugmentParams", "centre_crop_params", "train_params"]
