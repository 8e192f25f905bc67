"""TrivialAugmentWide, RandAugment and AutoAugment: choose operations and magnitudes, by torchvision's tables.

Papers: Müller and Hutter 2021 (TrivialAugment), Cubuk et al. 2020 (RandAugment), 2019 (AutoAugment). The names and the
magnitudes are those of `torchvision.transforms.autoaugment`. A test compares every entry.
"""

import numpy as np

from penstock.pipeline.augment.config import MAX_MAGNITUDE, AugmentConfig
from penstock.pipeline.augment.params import AugmentParams

OPS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert",
)  # fmt: skip
OP_ID = {name: i for i, name in enumerate(OPS)}
_RANDOM_OPS = OPS[:-1]  # TrivialAugment and RandAugment do not invert
_SIGNED = np.array([name in OPS[1:10] for name in OPS])
_BINS = MAX_MAGNITUDE + 1

_Entry = tuple[str, float, int]  # operation, probability, magnitude bin
# The ImageNet policy: 25 pairs. Each image gets one of them at random (Cubuk et al. 2019, table 9).
POLICY: list[tuple[_Entry, _Entry]] = [
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
]


def magnitudes(auto: str, image_size: int) -> np.ndarray:
    """The magnitude of each operation in each bin: (operations, bins). There are 31 bins, or 10 for AutoAugment.

    Shear is a slope, translation is in pixels, rotation in degrees. The enhancements are added to their factor of 1.
    Posterize is the number of bits to keep, solarize a grey level.
    """
    bins = 10 if auto == "autoaugment" else _BINS
    shear, turn, enhance, bits = (0.99, 135, 0.99, 6) if auto == "trivial" else (0.3, 30, 0.9, 4)
    move = 32.0 if auto == "trivial" else 150 / 331 * image_size
    ends = dict.fromkeys(("ShearX", "ShearY"), shear) | dict.fromkeys(("TranslateX", "TranslateY"), move)
    ends |= {"Rotate": turn} | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), enhance)
    table = np.stack([np.linspace(0, ends.get(name, 0), bins) for name in OPS])
    table[OP_ID["Posterize"]] = 8 - np.rint(np.arange(bins) / ((bins - 1) / bits))
    table[OP_ID["Solarize"]] = np.linspace(255, 0, bins)
    return table


def num_ops(config: AugmentConfig) -> int:
    """The number of operations applied one after the other. Each may be the identity."""
    return {"none": 0, "trivial": 1, "rand": config.auto_num_ops, "autoaugment": 2}[config.auto]


def chosen_ops(draws: np.ndarray, config: AugmentConfig, image_size: int) -> AugmentParams:
    """Draw the operations of `config.auto`.

    Args:
        draws: (n, 1 + 3 × num_ops) uniform in [0, 1).

    Returns:
        auto_op: (n, num_ops) int32 into `OPS`; auto_magnitude: (n, num_ops) float32, see `magnitudes`.
    """
    first, (choice, size, sign) = draws[:, 0], np.moveaxis(draws[:, 1:].reshape(len(draws), 3, -1), 1, 0)
    if config.auto == "autoaugment":
        policies = (first * len(POLICY)).astype(int)
        op = np.array([[OP_ID[name] for name, _, _ in pair] for pair in POLICY])[policies]
        bins = np.array([[bin_ for _, _, bin_ in pair] for pair in POLICY])[policies]
        probability = np.array([[p for _, p, _ in pair] for pair in POLICY])[policies]
        op = np.where(choice < probability, op, 0)
    else:
        op = (choice * len(_RANDOM_OPS)).astype(int)
        bins = (size * _BINS).astype(int) if config.auto == "trivial" else np.full_like(op, config.auto_magnitude)
    magnitude = magnitudes(config.auto, image_size)[op, bins]
    magnitude = np.where(_SIGNED[op] & (sign < 0.5), -magnitude, magnitude)
    return {"auto_op": op.astype(np.int32), "auto_magnitude": magnitude.astype(np.float32)}
