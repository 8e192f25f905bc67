"""The `[phases]` section of a recipe: settings that change between epochs (progressive resizing)."""

from dataclasses import dataclass
from itertools import pairwise

from penstock.settings import check, setting


@dataclass(frozen=True, kw_only=True)
class PhasesConfig:
    """Settings that change during a run. Phase i begins with epoch `start_epochs[i]`, counted from 0. Each other
    setting has one value for each phase, or is empty."""

    start_epochs: tuple[int, ...] = setting((), "Epochs at which the phases begin. The first is 0.")
    image_size: tuple[int, ...] = setting(
        (), "Side of a training image in each phase, in pixels. It replaces data.image_size.", at_least=1
    )
    global_batch_size: tuple[int, ...] = setting(
        (),
        "Global batch size in each phase. It replaces train.global_batch_size. The learning rate is not scaled with "
        "it: choose a schedule that fits.",
        at_least=1,
    )
    augment_strength: tuple[float, ...] = setting(
        (),
        "Strength of the augmentation in each phase, 0 to 1 (`AugmentConfig.scaled`). 1 is the recipe's.",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        check(self)
        starts = self.start_epochs
        if starts and (starts[0] != 0 or any(a >= b for a, b in pairwise(starts))):
            raise ValueError(f"start_epochs: {list(starts)} must begin with 0 and increase")
        for name in ("image_size", "global_batch_size", "augment_strength"):
            values = getattr(self, name)
            if values and len(values) != len(starts):
                raise ValueError(
                    f"{name}: has {len(values)} values for {len(starts)} start_epochs; give one for each, or none"
                )
        if starts and not (self.image_size or self.global_batch_size or self.augment_strength):
            raise ValueError("start_epochs: has no effect; give image_size, global_batch_size or augment_strength")
