"""Learning-rate schedules as pure functions of the epoch, so that a resumed run needs no schedule state.

Input: the progress of the run in epochs, with fractions, independent of the batch size. Output: the learning rate.
It warms up from `start_factor · base_lr` to `base_lr`, then decays towards `final_lr`. A new decay is one entry in
`DECAYS`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable

from penstock.model.config import ScheduleConfig


def warmup_of(config: ScheduleConfig, epochs: float) -> float:
    """The number of warm-up epochs in a run of `epochs`. Raises ValueError if the run ends before the warm-up."""
    if config.warmup_epochs is None:
        return min(5.0, epochs / 5)
    if config.warmup_epochs >= epochs:
        raise ValueError(
            f"schedule.warmup_epochs = {config.warmup_epochs:g} with train.epochs = {epochs:g}: the warm-up must end "
            "before the run does; lower it, remove it or train longer"
        )
    return config.warmup_epochs


def lr_at(epoch: float, *, epochs: float, base_lr: float, config: ScheduleConfig) -> float:
    """The learning rate of a step that begins after `epoch` of `epochs`: 0 is the first step, `epochs` the end.

    It equals torch's `LinearLR(start_factor)` followed by `CosineAnnealingLR(eta_min=final_lr)`, `LinearLR`,
    `MultiStepLR`, `StepLR` or `PolynomialLR`, each stepped once a training step. After the end it stays constant.

    Raises ValueError if the run ends before the warm-up.
    """
    warmup = warmup_of(config, epochs)
    if epoch < warmup:
        rise = epoch / warmup
        if config.name == "one_cycle":
            rise = 1.0 - _half_cosine(rise)
        return base_lr * (config.start_factor + (1.0 - config.start_factor) * rise)
    start = warmup if config.decay_after_warmup else 0.0
    progress = min((epoch - start) / (epochs - start), 1.0)
    return config.final_lr + (base_lr - config.final_lr) * DECAYS[config.name](progress, epoch, config)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))  # Loshchilov & Hutter 2017, equation 5


def _step(progress: float, epoch: float, config: ScheduleConfig) -> float:
    num_steps = epoch // config.step_epochs if config.step_epochs else bisect_right(config.milestones, epoch)
    return float(config.gamma**num_steps)


# (progress of the decay, 0 … 1; epoch; settings) → the remaining share of (base_lr − final_lr)
DECAYS: dict[str, Callable[[float, float, ScheduleConfig], float]] = {
    "cosine": lambda progress, epoch, config: _half_cosine(progress),
    "linear": lambda progress, epoch, config: 1.0 - progress,
    "constant": lambda progress, epoch, config: 1.0,
    "step": _step,
    "polynomial": lambda progress, epoch, config: float((1.0 - progress) ** config.power),
    "one_cycle": lambda progress, epoch, config: _half_cosine(progress),
}
