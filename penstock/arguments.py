"""Check and convert the arguments of `open_loader`. A wrong argument raises ValueError with a message of one line."""

import operator
import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches

import numpy as np
import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.config import DataConfig
from penstock.ranks import Ranks, ranks_of
from penstock.recipes.config import from_values

EVALUATED = ("val", "validation", "valid", "test")  # splits that "auto" does not augment
CROP_SHARE = 224 / 256  # of the resized image's shorter side that evaluation keeps by default
OWN = ("path", "train_split", "val_split", "test_split", "image_size", "val_image_size", "val_resize_size", "order",
       "loader")  # fmt: skip # settings that are arguments of `open_loader`, or that belong to a run


def integer(name: str, value: object, at_least: int) -> int:
    """Convert `value`, also NumPy's, to an int. Raises ValueError for other types, and below `at_least`."""
    try:
        number = at_least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = at_least - 1
    if number < at_least:
        raise ValueError(f"{name}: {value!r} must be an integer of at least {at_least}")
    return number


def as_plain(value: object) -> object:
    """Convert numbers and arrays of NumPy and torch to Python's. Other values are returned unchanged."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | torch.Tensor) else value


def data_config_of(
    path: str | os.PathLike[str], image_size: int, resize_size: int | None, order: str, loader: str,
    settings: Mapping[str, object],
) -> DataConfig:  # fmt: skip
    known = [one.name for one in fields(DataConfig) if one.name not in OWN]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"valid ones are {', '.join(known)}"
            raise ValueError(f"{name}: open_loader has no such argument; {hint}")
    size = integer("image_size", image_size, 1)
    resized = round(size / CROP_SHARE) if resize_size is None else integer("resize_size", resize_size, 1)
    if resized < size:
        raise ValueError(f"resize_size: {resized} must be at least image_size, {size}")
    settings = {name: as_plain(value) for name, value in settings.items()}
    given = {"path": str(path), "image_size": size, "val_image_size": size, "val_resize_size": resized, "order": order,
             "loader": loader, **settings}  # fmt: skip
    return from_values(DataConfig, given, "open_loader")


def augment_of(augment: AugmentConfig | str | None, split: str) -> AugmentConfig | None:
    if isinstance(augment, AugmentConfig):
        _require_filled(augment)
        return augment
    if augment == "auto":
        if split not in ("train", *EVALUATED):
            raise ValueError(
                f'augment: "auto" does not support split {split!r}: give augment="light" to train on it, augment=None '
                "to evaluate"
            )
        augment = "light" if split == "train" else None
    if augment is None:
        return None
    if not isinstance(augment, str) or augment not in AugmentConfig.presets:
        names = ", ".join(AugmentConfig.presets)
        raise ValueError(f"augment: {augment!r} is not a preset; give one of {names}, or a penstock.AugmentConfig")
    return from_values(AugmentConfig, {"preset": augment}, "augment")


def _require_filled(augment: AugmentConfig) -> None:
    """Raises ValueError for an `AugmentConfig(preset=…)` made in Python: only recipes fill in the preset's values."""
    if augment.preset not in AugmentConfig.presets:
        raise ValueError(f"augment: {augment.preset!r} is not a preset; give one of {', '.join(AugmentConfig.presets)}")
    values, unset = AugmentConfig.presets[augment.preset], AugmentConfig()
    if values and all(getattr(augment, name) == getattr(unset, name) for name in values):
        how = f'AugmentConfig(**AugmentConfig.presets["{augment.preset}"] | {{"hflip": 0.0}})'
        raise ValueError(
            f'augment: AugmentConfig(preset="{augment.preset}") has no effect; give augment="{augment.preset}", or, '
            f"with changes, {how}"
        )


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    found = {str(known).removeprefix("torch."): known for known in (torch.float32, torch.float16)}
    name = str(dtype).removeprefix("torch.")
    if name not in found:
        raise ValueError(f"dtype: images are float32 or float16, not {dtype}; autocast converts them to bfloat16")
    return found[name]


def given_ranks(rank: int | None, world_size: int | None) -> Ranks | None:
    if rank is None or world_size is None:
        return None
    rank, world_size = integer("rank", rank, 0), integer("world_size", world_size, 1)
    if rank >= world_size:
        raise ValueError(f"rank: {rank} of world_size {world_size}: ranks count from 0 to world_size − 1")
    return ranks_of(rank, world_size)


def device_of(device: torch.device | str, ranks: Ranks) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: {device!r}: give auto, cpu, cuda or cuda:N") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {device!r}: images are made on the CPU or on CUDA; give auto, cpu, cuda or cuda:N")
    if found.type == "cpu":
        return found
    index = ranks.local_rank if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device: cuda:{index}: torch sees {torch.cuda.device_count()} GPU(s)")
    return torch.device("cuda", index)
