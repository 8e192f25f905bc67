"""The `[phases]` section of a recipe: what changes from one epoch to another (progressive resizing)."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class PhasesConfig:
    """Phase i begins with epoch `start_epochs[i]` (from 0); the other settings have one value a phase, or are empty.

    image_size, global_batch_size: take the place of data.image_size and train.global_batch_size. The learning rate is
        not scaled with the batch: give the schedule that you mean.
    augment_strength: how strong the augmentation is, 0 to 1, as `AugmentConfig.scaled` has it: 1 is the recipe's.
    """

    start_epochs: tuple[int, ...] = ()
    image_size: tuple[int, ...] = ()
    global_batch_size: tuple[int, ...] = ()
    augment_strength: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        starts = self.start_epochs
        if starts and (starts[0] != 0 or any(a >= b for a, b in pairwise(starts))):
            raise ValueError(f"start_epochs: {list(starts)} must begin with 0 and grow")
        for name in ("image_size", "global_batch_size", "augment_strength"):
            values = getattr(self, name)
            if values and len(values) != len(starts):
                raise ValueError(
                    f"{name}: has {len(values)} values for {len(starts)} start_epochs; give one each, or none"
                )
        if starts and not (self.image_size or self.global_batch_size or self.augment_strength):
            raise ValueError("start_epochs: has no effect; give image_size, global_batch_size or augment_strength")
        if any(size < 1 for size in (*self.image_size, *self.global_batch_size)):
            raise ValueError("image_size, global_batch_size: must be at least 1")
        if any(not 0 <= strength <= 1 for strength in self.augment_strength):
            raise ValueError(f"augment_strength: {list(self.augment_strength)} must lie in 0 to 1")
