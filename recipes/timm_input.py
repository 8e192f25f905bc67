"""Input images of timm's networks: defaults of [data] for a recipe with `model.name = "timm/…"`.

timm keeps the mean, std, size, crop and filter with each of its weights. They replace the defaults of the settings, but
nothing that a recipe, `--set` or a run's own config.toml gives.
"""

from collections.abc import Mapping
from typing import Any

from penstock.model.config import ModelConfig
from penstock.model.names import TIMM, check_network
from penstock.recipes.config import toml_value

SIZES = ("image_size", "val_image_size")
TAKEN = (*SIZES, "val_resize_size", "interpolation", "mean", "std")  # settings of [data]


def timm_defaults(given: Mapping[str, Any]) -> tuple[dict[str, object], str]:
    """Defaults for a recipe with a timm network, by dotted key, and a line that lists them. Empty, and "", for another
    network, or if the recipe gives all of them.

    given: the values that the recipe and `--set` give, by dotted key. A network that accepts images of one size only is
    built for `data.image_size`, so validation uses that size. As in timm's train.py, validation has the size of
    training.

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
    return taken, f"defaults of {name}: {words}"
