"""Images for timm's networks: what a recipe with `model.name = "timm/…"` gives → what it has for the rest of [data].

timm keeps mean, std, size, crop and filter with each of its weights. They take the place of the settings' defaults, and
of nothing that a recipe, `--set` or a run's own config.toml gives.
"""

from collections.abc import Mapping
from typing import Any

from penstock.model.config import ModelConfig
from penstock.model.names import TIMM, check_network
from penstock.recipes.config import toml_value

SIZES = ("image_size", "val_image_size")
TAKEN = (*SIZES, "val_resize_size", "interpolation", "mean", "std")  # of [data]


def timm_defaults(given: Mapping[str, Any]) -> tuple[dict[str, object], str]:
    """Settings for a recipe's network of timm's, by dotted key, in place of defaults; and a line that says them. None,
    and "", for another network and where all is given.

    given: the values that somebody gave, by dotted key. A network that takes images of one size is built for
    `data.image_size`, so validation follows that. As in timm's train.py, validation has the size of training.

    Raises ValueError for a network that timm does not have.
    """
    name, missing = given.get("model.name", ""), [key for key in TAKEN if f"data.{key}" not in given]
    if not name.startswith(TIMM) or not missing:
        return {}, ""
    check_network(name)
    from penstock.model.timm_networks import input_of, resize_size  # here: timm takes seconds

    arguments = {key: given[f"model.{key}"] for key in ("pretrained", "timm_args") if f"model.{key}" in given}
    theirs = input_of(ModelConfig(name=name, **arguments))
    found: dict[str, object] = {"mean": theirs.mean, "std": theirs.std, "interpolation": theirs.interpolation}
    sizes = {key: given[f"data.{key}"] for key in SIZES if key not in missing}
    size = next(iter(sizes.values()), theirs.size) if theirs.is_fixed else theirs.size
    found |= dict.fromkeys(SIZES, size) | sizes
    if val_size := sizes.get("val_image_size", size):
        found["val_resize_size"] = resize_size(val_size, theirs.crop_pct)
    taken = {f"data.{key}": found[key] for key in missing if found.get(key) is not None}
    words = ", ".join(f"{key} = {toml_value(value)}" for key, value in taken.items())
    return taken, f"of {name}, as not given: {words}"
