"""The arguments of `open_loader`: what a caller gives → what the pipeline takes, or a line that says what is wrong."""

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches

import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.config import DataConfig
from penstock.ranks import Ranks, current_ranks
from penstock.recipes.config import from_values

EVALUATED = ("val", "validation", "valid", "test")  # splits that "auto" does not augment
CROP_SHARE = 224 / 256  # of the resized image's shorter side, which evaluation keeps by default
OWN = ("path", "train_split", "val_split", "test_split", "image_size", "val_image_size", "val_resize_size", "order",
       "loader")  # fmt: skip # settings that arguments of `open_loader` stand for, or that belong to a run


def data_config_of(
    path: str | os.PathLike[str], image_size: int, resize_size: int | None, order: str, loader: str,
    settings: Mapping[str, object],
) -> DataConfig:  # fmt: skip
    known = [one.name for one in fields(DataConfig) if one.name not in OWN]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{name}: open_loader has no such argument; {hint}")
    sizes = {"image_size": image_size, "val_image_size": image_size}
    if resize_size is None:
        resize_size = round(image_size / CROP_SHARE) if isinstance(image_size, int) else image_size
    elif isinstance(resize_size, int) and isinstance(image_size, int) and resize_size < image_size:
        raise ValueError(f"resize_size: {resize_size} must be at least image_size, {image_size}")
    given = {"path": str(path), **sizes, "val_resize_size": resize_size, "order": order, "loader": loader, **settings}
    return from_values(DataConfig, given, "open_loader")


def augment_of(augment: AugmentConfig | str | None, split: str) -> AugmentConfig | None:
    if augment is None or isinstance(augment, AugmentConfig):
        return augment
    if augment == "auto":
        if split not in ("train", *EVALUATED):
            raise ValueError(
                f'augment: say what split {split!r} is for: augment="light" to train on it, augment=None to evaluate'
            )
        augment = "light" if split == "train" else None
    if augment is None:
        return None
    if augment not in AugmentConfig.presets:
        names = ", ".join(AugmentConfig.presets)
        raise ValueError(f"augment: {augment!r} is no preset; there are {names}; or give a penstock.AugmentConfig")
    return from_values(AugmentConfig, {"preset": augment}, "augment")


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    found = {str(known).removeprefix("torch."): known for known in (torch.float32, torch.float16)}
    name = str(dtype).removeprefix("torch.")
    if name not in found:
        raise ValueError(f"dtype: images are float32 or float16, not {dtype}; autocast makes bfloat16 of them")
    return found[name]


def given_ranks(rank: int | None, world_size: int | None) -> Ranks | None:
    if rank is None or world_size is None:
        return None
    if not (isinstance(rank, int) and isinstance(world_size, int) and 0 <= rank < world_size):
        raise ValueError(f"rank: {rank!r} of world_size {world_size!r}: ranks count from 0 to world_size − 1")
    return current_ranks()._replace(rank=rank, world_size=world_size)


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
