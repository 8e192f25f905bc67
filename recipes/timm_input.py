"""Images for timm's networks: a recipe with `model.name = "timm/…"` → the same with what its weights were trained on.

timm keeps mean, std, size, crop and filter with each of its weights. They take the place of a recipe's defaults, and
of nothing that a recipe, `--set` or a run's own config.toml gives.
"""

from collections.abc import Collection
from dataclasses import fields, replace

from penstock.model.names import TIMM, check_network
from penstock.pipeline.config import DataConfig
from penstock.recipes import Recipe
from penstock.recipes.config import toml_value

TAKEN = ("mean", "std", "image_size", "val_image_size", "val_resize_size", "interpolation")  # of [data]


def with_timm_input(recipe: Recipe, given: Collection[str]) -> tuple[Recipe, str]:
    """The recipe for its network, and a line that says what of it is timm's: "" where nothing is.

    given: the dotted keys that somebody gave. A network that takes images of one size is built for `data.image_size`,
    so validation follows that. As timm's train.py, validation has the size of training, not a larger one.

    Raises ValueError for a network that timm does not have, and where what is given does not go with what is taken.
    """
    missing = [name for name in TAKEN if f"data.{name}" not in given]
    if not recipe.model.name.startswith(TIMM) or not missing:
        return recipe, ""
    check_network(recipe.model.name)
    from penstock.model.timm_networks import input_of, resize_size  # here: timm takes seconds

    data, theirs = recipe.data, input_of(recipe.model)
    found: dict[str, object] = {"mean": theirs.mean, "std": theirs.std}
    if theirs.interpolation:
        found["interpolation"] = theirs.interpolation
    sizes = {name: getattr(data, name) for name in ("image_size", "val_image_size") if name not in missing}
    size = next(iter(sizes.values()), theirs.size) if theirs.is_fixed else theirs.size
    if size:
        found |= {"image_size": size, "val_image_size": size} | sizes
        found["val_resize_size"] = resize_size(int(str(found["val_image_size"])), theirs.crop_pct)
    taken = {name: found[name] for name in TAKEN if name in missing and name in found}
    try:
        recipe = replace(recipe, data=replace(data, **taken))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"data: {error} (what is not given is {recipe.model.name}'s)") from None
    return recipe, f"of {recipe.model.name}, as not given: " + _in_words(taken)


def _in_words(taken: dict[str, object]) -> str:
    return ", ".join(
        f"data.{one.name} = {toml_value(taken[one.name])}" for one in fields(DataConfig) if one.name in taken
    )
