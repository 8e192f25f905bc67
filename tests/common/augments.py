"""Augmentations for the tests: each alone with its tolerance against the reference, all of a graph, and all at once."""

from typing import Any, get_args, get_type_hints

from penstock.pipeline.augment import AugmentConfig

EVERYTHING = AugmentConfig(
    vflip=0.5, rotation=20, auto="trivial", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, lighting=0.1,
    grayscale=0.3, blur=0.5, noise=0.5, salt_pepper=0.5, jpeg=0.5, erase=0.5, repeats=3,
)  # fmt: skip

# settings → the largest mean difference of an image that is allowed, in grey levels; and that of all images.
# Where it is above 0.5 the definitions differ: see docs/augmentations.md.
CASES: dict[str, tuple[dict[str, Any], float, float]] = {
    "centre": ({"crop": "centre", "crop_fraction": 0.8}, 0.5, 0.25),
    "vflip": ({"vflip": 0.5}, 0.5, 0.25),
    "rotation": ({"rotation": 40}, 0.6, 0.35),
    "rotation, nearest": ({"rotation": 40, "rotation_filter": "nearest"}, 0.5, 0.25),
    "brightness": ({"brightness": 0.4}, 0.8, 0.6),
    "contrast": ({"contrast": 0.4}, 0.8, 0.6),
    "saturation": ({"saturation": 0.4}, 0.8, 0.6),
    "hue": ({"hue": 0.1}, 25, 9),
    "lighting": ({"lighting": 0.1}, 0.5, 0.25),
    "grayscale": ({"grayscale": 0.5}, 0.5, 0.25),
    "blur": ({"blur": 0.5}, 0.6, 0.3),
    "noise": ({"noise": 1}, 0.5, 0.25),
    "salt_pepper": ({"salt_pepper": 1}, 0.5, 0.25),
    "jpeg": ({"jpeg": 1}, 2.5, 1),
    "erase": ({"erase": 1}, 0.5, 0.25),
}

HINTS = get_type_hints(AugmentConfig)
# From what there is of each: a new crop, policy, preset or augmentation is among them by itself (a test in
# tests/pipeline/test_augmentations.py asks for a case of each setting).
AUGMENTS: dict[str, AugmentConfig | None] = {
    "validation": None,
    **{f"crop {crop}": AugmentConfig(crop=crop) for crop in get_args(HINTS["crop"])},
    **{f"auto {auto}": AugmentConfig(auto=auto) for auto in get_args(HINTS["auto"])},
    **{f"preset {name}": AugmentConfig(**values) for name, values in AugmentConfig.presets.items()},
    **{name: AugmentConfig(**settings) for name, (settings, _, _) in CASES.items()},
    "flips in turn": AugmentConfig(hflip_alternate=True, vflip=0.5),
    "everything": AugmentConfig(
        rotation=20, auto="trivial", brightness=0.4, lighting=0.1, grayscale=0.3, blur=0.5, noise=0.5,
        salt_pepper=0.5, jpeg=0.5, erase=0.5, crop="pad", vflip=0.5,
    ),
}  # fmt: skip
