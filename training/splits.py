"""Check that a dataset has the splits that a recipe names. Needs no torch, so errors are reported at once."""

from penstock.recipes import Recipe
from penstock.shards.format import ShardSet
from penstock.shards.program import SHARD_TOOLS


def validates(recipe: Recipe) -> bool:
    """Whether the recipe has a validation split: `data.val_split` may be none."""
    return recipe.data.val_split not in ("", "none")


def check_splits(recipe: Recipe, dataset: ShardSet) -> None:
    """Raise ValueError, with the remedies, if the dataset lacks a split that the recipe names."""
    if validates(recipe) and recipe.data.val_split not in dataset.splits:
        raise ValueError(
            f"{dataset.place}: no split {recipe.data.val_split!r} to validate on; it has {', '.join(dataset.splits)}. "
            f"Pack one ({SHARD_TOOLS} pack SOURCE OUT --split train=0.9,val=0.1), name another (--set "
            "data.val_split=NAME), or train without validation (--set data.val_split=none)"
        )
    for name in filter(None, (recipe.data.train_split, recipe.data.test_split)):
        dataset.split(name)
