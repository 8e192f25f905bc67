"""Every registered augmentation on the GPU and on the CPU, on the same pixels with the same random draws."""

from typing import Any

import numpy as np
import pytest
import torch

from penstock.pipeline.augment import AugmentConfig, train_params
from penstock.pipeline.augment.graph import augment_images
from penstock.pipeline.augment.steps import step_arrays
from penstock.pipeline.config import DataConfig
from penstock.pipeline.plan import EpochPlan
from tests.common.augments import AUGMENTS
from tests.common.images import picture

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

NUM, SIDE = 16, 64
# Mean difference of an image, and share of its values that may be more than a level apart. On the same pixels only
# filters and float arithmetic round differently; JPEG's quantisation and a threshold make more of that.
# Guessed; an H200 kept to them.
BOUNDS = {"jpeg": (8.0, 1.0), "everything": (8.0, 1.0), "auto autoaugment": (1.0, 0.1), "auto rand": (1.0, 0.1)}


def augmented(pixels: np.ndarray, config: AugmentConfig, device: str) -> np.ndarray:
    """The steps on (n, S, S, 3) uint8 images."""
    from nvidia.dali import Pipeline, fn

    sides = np.full(NUM, SIDE)
    params = train_params(EpochPlan(num_samples=NUM, seed=2), config, [(0, NUM)], sides, sides, SIDE, np.arange(NUM))
    arrays = step_arrays(params, config, SIDE)
    pipe: Any = Pipeline(batch_size=NUM, num_threads=2, device_id=0 if device == "gpu" else None)
    with pipe:
        images, *nodes = fn.external_source(
            lambda: (list(pixels), *map(list, arrays.values())), num_outputs=1 + len(arrays), batch=True
        )
        images = images.gpu() if device == "gpu" else images
        pipe.set_outputs(augment_images(images, dict(zip(arrays, nodes, strict=True)), DataConfig()))
    pipe.build()
    (output,) = pipe.run()
    output = output.as_cpu() if device == "gpu" else output
    return np.stack([np.asarray(output.at(i)) for i in range(NUM)])


@pytest.mark.parametrize("name", [name for name, config in AUGMENTS.items() if config])
def test_the_gpu_augments_as_the_cpu_does(name: str) -> None:
    config = AUGMENTS[name]
    assert config
    rng = np.random.default_rng(3)
    flat = np.full((SIDE, SIDE, 3), (9, 9, 200), np.uint8)  # without contrast
    pixels = np.stack([np.asarray(picture(SIDE, SIDE, rng)) for _ in range(NUM - 1)] + [flat])
    difference = np.abs(augmented(pixels, config, "gpu").astype(int) - augmented(pixels, config, "cpu"))
    mean, share = BOUNDS.get(name, (0.5, 0.02))
    print(
        f"{name}: worst image {difference.mean(axis=(1, 2, 3)).max():.3f}, beyond a level {(difference > 1).mean():.4f}"
    )
    assert difference.mean(axis=(1, 2, 3)).max() < mean
    assert (difference > 1).mean() <= share
