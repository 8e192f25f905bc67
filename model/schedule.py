"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no schedule state.

Linear warm-up from `start_factor · base_lr` to `base_lr`, then a decay by name towards `final_lr`.
A new decay is one entry in `DECAYS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# progress after the warm-up, 0 … 1 → the share of (base_lr − final_lr) that is left, 1 … 0
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),  # Loshchilov & Hutter 2017, equation 5
    "linear": lambda progress: 1.0 - progress,  # with a warm-up: the triangle of ffcv-imagenet
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """name: the decay after the warm-up. warmup_epochs: may be a fraction. final_lr: a learning rate, not a factor."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_epochs: float = 5.0
    start_factor: float = 0.01
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup_epochs >= 0:
            raise ValueError(f"warmup_epochs must be 0 or more, not {self.warmup_epochs}")
        if not 0 <= self.start_factor <= 1:
            raise ValueError(f"start_factor must be in [0, 1], not {self.start_factor}")
        if not self.final_lr >= 0:
            raise ValueError(f"final_lr must be 0 or more, not {self.final_lr}")
        if self.name == "constant" and self.final_lr != 0:
            raise ValueError("a constant schedule never reaches final_lr; leave it out")


def lr_at(step: int, *, total_steps: int, steps_per_epoch: int, base_lr: float, config: ScheduleConfig) -> float:
    """The learning rate of global step `step` (0 is the first, total_steps − 1 the last).

    Equal to torch's `LinearLR(start_factor, total_iters=warm-up steps)` followed by `CosineAnnealingLR(T_max=the
    other steps, eta_min=final_lr)`. After the last step the decay stays where it ended.

    Raises ValueError for an unknown schedule, and where the warm-up does not end before the run does.
    """
    if config.name not in DECAYS:
        raise ValueError(f"unknown schedule {config.name!r}: {', '.join(DECAYS)}")
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise ValueError(
            f"schedule.warmup_epochs = {config.warmup_epochs} is {warmup_steps} of {total_steps} steps: "
            "the warm-up must end before the run does; lower it or train longer"
        )
    if step < warmup_steps:
        return base_lr * (config.start_factor + (1.0 - config.start_factor) * step / warmup_steps)
    progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    return config.final_lr + (base_lr - config.final_lr) * DECAYS[config.name](progress)
