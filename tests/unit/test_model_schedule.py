"""Schedules compared with torch's schedulers, and with ffcv-imagenet's and timm's definitions."""

import itertools
import math

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from penstock.model.config import ScheduleConfig
from penstock.model.schedule import DECAYS, lr_at
from penstock.recipes import Recipe
from penstock.recipes.config import load_config

BASE_LR, STEPS_PER_EPOCH, EPOCHS = 0.7, 10, 10
TOTAL = STEPS_PER_EPOCH * EPOCHS

# The settings that a decay needs, and torch's scheduler of it after `warmup` steps, stepped once a training step.
CASES = [
    ({"name": "cosine"}, lambda o, rest, warmup: lr_scheduler.CosineAnnealingLR(o, T_max=rest)),
    ({"name": "cosine", "final_lr": 0.05}, lambda o, rest, warmup: lr_scheduler.CosineAnnealingLR(o, rest, 0.05)),
    ({"name": "linear"}, lambda o, rest, warmup: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=rest)),
    ({"name": "linear", "final_lr": 0.05}, lambda o, rest, warmup: lr_scheduler.LinearLR(o, 1.0, 0.05 / BASE_LR, rest)),
    ({"name": "constant"}, lambda o, rest, warmup: lr_scheduler.ConstantLR(o, factor=1.0)),
    ({"name": "polynomial"}, lambda o, rest, warmup: lr_scheduler.PolynomialLR(o, rest, power=2.0)),
    ({"name": "polynomial", "power": 0.9}, lambda o, rest, warmup: lr_scheduler.PolynomialLR(o, rest, power=0.9)),
    (
        {"name": "step", "milestones": (4.0, 6.5), "gamma": 0.2},
        lambda o, rest, warmup: lr_scheduler.MultiStepLR(o, [40 - warmup, 65 - warmup], 0.2),
    ),
]


def _ours(config: ScheduleConfig, total: int = TOTAL) -> list[float]:
    epochs = total / STEPS_PER_EPOCH
    return [lr_at(s / STEPS_PER_EPOCH, epochs=epochs, base_lr=BASE_LR, config=config) for s in range(total)]


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE_LR)


def _curve(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, num_steps: int = TOTAL) -> list[float]:
    curve = []
    for _ in range(num_steps):
        curve.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return curve


@pytest.mark.parametrize(("options", "decay"), CASES, ids=[str(options) for options, _ in CASES])
@pytest.mark.parametrize(("warmup_epochs", "warmup"), [(3.0, 30), (0.5, 5), (0.0, 0)])
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_curve_is_torchs(options: dict, decay, warmup_epochs: float, warmup: int) -> None:
    config = ScheduleConfig(**options, warmup_epochs=warmup_epochs, start_factor=0.1)
    optimizer = _optimizer()
    scheduler = decay(optimizer, TOTAL - warmup, warmup)
    optimizer.param_groups[0]["lr"] = BASE_LR  # each constructor touched it: begin again
    if warmup:
        rise = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rise, scheduler], milestones=[warmup])
    assert _ours(config) == pytest.approx(_curve(optimizer, scheduler), rel=1e-6, abs=1e-9)


def test_a_step_every_so_many_epochs_is_torchs() -> None:
    optimizer = _optimizer()
    expected = _curve(optimizer, lr_scheduler.StepLR(optimizer, step_size=24, gamma=0.97))
    config = ScheduleConfig(name="step", step_epochs=2.4, gamma=0.97, warmup_epochs=0)
    assert _ours(config) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup", [30, 45])
def test_one_cycle_is_torchs(warmup: int) -> None:
    """torch's last step is at its lowest, ours one step before the end is not: so torch is given one step more."""
    optimizer = _optimizer()
    share = (warmup + 1) / (TOTAL + 1)
    theirs = lr_scheduler.OneCycleLR(
        optimizer, BASE_LR, TOTAL + 1, pct_start=share, div_factor=25, final_div_factor=1e3
    )
    config = ScheduleConfig(
        name="one_cycle", warmup_epochs=warmup / STEPS_PER_EPOCH, start_factor=1 / 25, final_lr=BASE_LR / 25e3
    )
    assert _ours(config) == pytest.approx(_curve(optimizer, theirs), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("lr", "peak", "epochs"), [(1.7, 2, 16), (1.7, 2, 88), (0.5, 2, 16)])
def test_linear_with_a_warm_up_is_ffcvs_triangle(lr: float, peak: int, epochs: int) -> None:
    """ffcv-imagenet, get_cyclic_lr: interpolated between [1e-4 lr, lr, 0] at epochs [0, peak, end], then within one."""
    config = ScheduleConfig(name="linear", warmup_epochs=peak, start_factor=1e-4)
    for epoch in range(epochs):
        ends = np.interp([epoch, epoch + 1], [0, peak, epochs], [1e-4 * lr, lr, 0])
        steps = np.interp(np.arange(20), [0, 20], ends)
        ours = [lr_at(epoch + step / 20, epochs=epochs, base_lr=lr, config=config) for step in range(20)]
        assert ours == pytest.approx(steps.tolist(), rel=1e-9, abs=1e-12)


def test_a_decay_under_the_warm_up_is_timms() -> None:
    optimizer = _optimizer()
    theirs = CosineLRScheduler(
        optimizer, t_initial=TOTAL, lr_min=1e-3, warmup_t=30, warmup_lr_init=BASE_LR / 100, t_in_epochs=False
    )
    expected = []
    for step in range(TOTAL):
        theirs.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    config = ScheduleConfig(warmup_epochs=3, start_factor=0.01, final_lr=1e-3, decay_after_warmup=False)
    assert _ours(config) == pytest.approx(expected, rel=1e-9)


LAST = {"cosine": 0.05, "linear": 0.05, "polynomial": 0.05, "one_cycle": 0.05, "constant": BASE_LR, "step": 0.07}


@pytest.mark.parametrize("name", DECAYS)
def test_start_peak_end_and_after(name: str) -> None:
    final_lr = 0.05 if LAST[name] == 0.05 else 0.0
    milestones = (8.0,) if name == "step" else ()
    config = ScheduleConfig(name=name, warmup_epochs=5, final_lr=final_lr, milestones=milestones)  # type: ignore[arg-type]
    values = {epoch: lr_at(epoch, epochs=10, base_lr=BASE_LR, config=config) for epoch in (0, 5, 10, 100)}
    assert values == pytest.approx({0: 0.01 * BASE_LR, 5: BASE_LR, 10: LAST[name], 100: LAST[name]})


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial"])
def test_it_falls_all_the_way(name: str) -> None:
    curve = _ours(ScheduleConfig(name=name, warmup_epochs=0))  # type: ignore[arg-type]
    assert all(a > b for a, b in itertools.pairwise(curve))


def test_fewer_steps_an_epoch_follow_the_same_curve() -> None:
    """Progressive resizing changes the batch, and with it the steps of an epoch; the curve is one of epochs."""
    at = {s: lr_at(2 + s, epochs=10, base_lr=1.0, config=ScheduleConfig(warmup_epochs=1)) for s in (0.25, 0.5, 0.75)}
    assert at == pytest.approx({s: 0.5 * (1 + math.cos(math.pi * (1 + s) / 9)) for s in at})


def test_a_warm_up_as_long_as_the_run_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs = 5 with train.epochs = 5: the warm-up must end before"):
        lr_at(0, epochs=5, base_lr=1.0, config=ScheduleConfig(warmup_epochs=5))


@pytest.mark.parametrize(("epochs", "warmup"), [(300, 5), (90, 5), (25, 5), (10, 2), (5, 1), (1, 0.2)])
def test_the_default_warm_up_fits_into_every_run(epochs: int, warmup: float) -> None:
    curve = {e: lr_at(e, epochs=epochs, base_lr=1.0, config=ScheduleConfig()) for e in (0, warmup / 2, warmup, epochs)}
    assert curve == pytest.approx({0: 0.01, warmup / 2: 0.505, warmup: 1.0, epochs: 0.0})
    assert load_config(Recipe, None, [f"train.epochs={epochs}"]).schedule.warmup_epochs == warmup
    given = f"schedule.warmup_epochs={epochs}"
    with pytest.raises(ValueError, match=f"warmup_epochs = {epochs} with train.epochs = {epochs}: .*remove it"):
        load_config(Recipe, None, [f"train.epochs={epochs}", given])


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_epochs": -1.0},
        {"warmup_epochs": float("nan")},
        {"start_factor": 1.5},
        {"final_lr": -0.1},
        {"name": "constant", "final_lr": 0.1},
        {"name": "step", "milestones": (5.0,), "final_lr": 0.1},
        {"name": "step", "milestones": (5.0, 3.0)},
        {"name": "step", "milestones": (0.0, 3.0)},
        {"name": "step", "step_epochs": 3.0, "milestones": (5.0,)},
        {"milestones": (5.0,)},
        {"step_epochs": 3.0},
        {"gamma": 0.5},
        {"power": 1.0},
        {"name": "polynomial", "power": 0.0},
        {"name": "step", "step_epochs": 3.0, "gamma": 0.0},
        {"name": "one_cycle", "decay_after_warmup": False},
        {"warmup_epochs": 0.0, "decay_after_warmup": False},
    ],
)
def test_bad_settings_are_errors(options: dict) -> None:
    with pytest.raises(ValueError, match=next(reversed(options))):
        ScheduleConfig(**options)


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'cosines'; known are cosine, linear"):
        ScheduleConfig(name="cosines")  # type: ignore[arg-type]


def test_steps_without_a_place_are_an_error() -> None:
    with pytest.raises(ValueError, match="needs either milestones or step_epochs"):
        ScheduleConfig(name="step")
