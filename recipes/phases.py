"""The `[phases]` section of a recipe: what changes from one epoch to another (progressive resizing)."""

from dataclasses import dataclass
from itertools import pairwise

from penstock.settings import check, setting


@dataclass(frozen=True, kw_only=True)
class PhasesConfig:
    """Phase i begins with epoch `start_epochs[i]` (from 0); the other settings have one value a phase, or are empty."""

    start_epochs: tuple[int, ...] = setting((), "The epochs with which the phases begin; the first is 0.")
    image_size: tuple[int, ...] = setting((), "Takes the place of data.image_size.", at_least=1)
    global_batch_size: tuple[int, ...] = setting(
        (),
        "Takes the place of train.global_batch_size. The learning rate is not scaled with the batch: give the schedule "
        "that you mean.",
        at_least=1,
    )
    augment_strength: tuple[float, ...] = setting(
        (),
        "How strong the augmentation is, 0 to 1, as `AugmentConfig.scaled` has it: 1 is the recipe's.",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        check(self)
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
