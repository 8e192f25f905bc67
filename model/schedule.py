"""Learning-rate schedules as pure functions of the epoch, so that a resumed run needs no schedule state.

Input: how far the run is, in epochs and fractions of one, whatever a step's batch is. Output: the learning rate there.
It warms up from `start_factor · base_lr` to `base_lr`, then decays by name towards `final_lr`. A new decay is one entry
in `DECAYS`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """name: the decay after the warm-up. With a warm-up from 0, "linear" is ffcv-imagenet's triangle. "step" multiplies
        by `gamma` at each of `milestones`, or every `step_epochs`, both counted from the run's start. "polynomial" is
        (1 − progress) ** power. "one_cycle" rises along a cosine, too, as torch's OneCycleLR (Smith & Topin 2018; the
        momentum is not cycled): `warmup_epochs` is its rise, pct_start · epochs there, 1 / start_factor its div_factor.
    warmup_epochs: may be a fraction; unset, 5, or a fifth of a run shorter than 25. start_factor: of base_lr, where the
        warm-up begins. The rise is linear.
    decay_after_warmup: whether the decay begins where the warm-up ends (Goyal et al. 2017); false lets it run from the
        run's start, under the warm-up, after which the learning rate falls at once to where the decay is (timm's way).
    final_lr: where the decay ends; a learning rate, not a factor.
    """

    name: Literal["cosine", "linear", "constant", "step", "polynomial", "one_cycle"] = "cosine"
    warmup_epochs: float | None = None
    start_factor: float = 0.01
    decay_after_warmup: bool = True
    final_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    step_epochs: float = 0.0
    gamma: float = 0.1
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in DECAYS:
            raise ValueError(f"name: unknown schedule {self.name!r}: {', '.join(DECAYS)}")
        for name in ("warmup_epochs", "final_lr", "step_epochs"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more")
        if not 0 <= self.start_factor <= 1:
            raise ValueError(f"start_factor: {self.start_factor} must be in [0, 1]")
        for name in ("gamma", "power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        if any(a >= b for a, b in zip((0.0, *self.milestones), self.milestones, strict=False)):
            raise ValueError(f"milestones: {list(self.milestones)} must be above 0 and grow")
        for field in fields(self):
            if getattr(self, field.name) != field.default and self.name not in _READ_WITH.get(field.name, DECAYS):
                raise ValueError(f'{field.name}: has no effect with name = "{self.name}"; leave it out')
        if self.name == "step" and bool(self.milestones) == bool(self.step_epochs):
            raise ValueError('milestones: name = "step" needs either milestones or step_epochs')
        if not self.decay_after_warmup and self.warmup_epochs == 0:
            raise ValueError("decay_after_warmup: has no effect with warmup_epochs = 0; leave it out")


def warmup_of(config: ScheduleConfig, epochs: float) -> float:
    """How many of a run's `epochs` are warm-up. Raises ValueError where it does not end before the run does."""
    if config.warmup_epochs is None:
        return min(5.0, epochs / 5)
    if config.warmup_epochs >= epochs:
        raise ValueError(
            f"schedule.warmup_epochs = {config.warmup_epochs:g} of train.epochs = {epochs:g}: the warm-up must end "
            "before the run does; lower it, leave it out or train longer"
        )
    return config.warmup_epochs


def lr_at(epoch: float, *, epochs: float, base_lr: float, config: ScheduleConfig) -> float:
    """The learning rate of a step that begins when `epoch` of `epochs` are done: 0 is the first step, `epochs` the end.

    Equal to torch's `LinearLR(start_factor)` followed by `CosineAnnealingLR(eta_min=final_lr)`, `LinearLR`,
    `MultiStepLR`, `StepLR` or `PolynomialLR`, each stepped once a training step. After the end it stays as it is there.

    Raises ValueError where the warm-up does not end before the run does.
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


# (progress 0 … 1 from the decay's start to the end, epoch, settings) → the share of (base_lr − final_lr) that is left
DECAYS: dict[str, Callable[[float, float, ScheduleConfig], float]] = {
    "cosine": lambda progress, epoch, config: _half_cosine(progress),
    "linear": lambda progress, epoch, config: 1.0 - progress,
    "constant": lambda progress, epoch, config: 1.0,
    "step": _step,
    "polynomial": lambda progress, epoch, config: float((1.0 - progress) ** config.power),
    "one_cycle": lambda progress, epoch, config: _half_cosine(progress),
}
# setting → the schedules that read it
_READ_WITH: dict[str, tuple[str, ...]] = {
    "decay_after_warmup": ("cosine", "linear", "polynomial"),
    "final_lr": ("cosine", "linear", "polynomial", "one_cycle"),
    "milestones": ("step",),
    "step_epochs": ("step",),
    "gamma": ("step",),
    "power": ("polynomial",),
}
