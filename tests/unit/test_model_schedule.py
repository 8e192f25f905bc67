"""Schedules against torch's schedulers."""

import itertools

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from model.schedule import DECAYS, ScheduleConfig, lr_at

BASE_LR, STEPS_PER_EPOCH, TOTAL = 0.7, 10, 100


def _torch_curve(config: ScheduleConfig, warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE_LR)
    rest = TOTAL - warmup_steps
    decays: dict[str, LRScheduler] = {
        "cosine": CosineAnnealingLR(optimizer, T_max=rest, eta_min=config.final_lr),
        "linear": LinearLR(optimizer, 1.0, config.final_lr / BASE_LR, total_iters=rest),
        "constant": ConstantLR(optimizer, factor=1.0),
    }
    # Each constructor touched the optimizer's lr: begin again from the base lr.
    optimizer.param_groups[0]["lr"] = BASE_LR
    scheduler: LRScheduler = decays[config.name]
    if warmup_steps:
        warmup = LinearLR(optimizer, config.start_factor, total_iters=warmup_steps)
        scheduler = SequentialLR(optimizer, [warmup, scheduler], milestones=[warmup_steps])
    curve = []
    for _ in range(TOTAL):
        curve.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return curve


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize(("warmup_epochs", "warmup_steps"), [(3.0, 30), (0.5, 5), (0.0, 0)])
@pytest.mark.parametrize("final_lr", [0.0, 0.05])
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_curve_is_torchs(name: str, warmup_epochs: float, warmup_steps: int, final_lr: float) -> None:
    if name == "constant":
        final_lr = 0.0
    config = ScheduleConfig(name=name, warmup_epochs=warmup_epochs, start_factor=0.1, final_lr=final_lr)  # type: ignore[arg-type]
    curve = [
        lr_at(step, total_steps=TOTAL, steps_per_epoch=STEPS_PER_EPOCH, base_lr=BASE_LR, config=config)
        for step in range(TOTAL)
    ]
    assert curve == pytest.approx(_torch_curve(config, warmup_steps), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.05), ("linear", 0.05), ("constant", BASE_LR)])
def test_peak_end_and_after(name: str, last: float) -> None:
    config = ScheduleConfig(name=name, final_lr=0.05 if name != "constant" else 0.0)  # type: ignore[arg-type]
    values = {
        step: lr_at(step, total_steps=TOTAL, steps_per_epoch=STEPS_PER_EPOCH, base_lr=BASE_LR, config=config)
        for step in (0, 50, 100, 1000)
    }
    assert values == pytest.approx({0: 0.01 * BASE_LR, 50: BASE_LR, 100: last, 1000: last})


def test_cosine_falls_all_the_way() -> None:
    config = ScheduleConfig(warmup_epochs=0)
    curve = [lr_at(s, total_steps=TOTAL, steps_per_epoch=1, base_lr=1.0, config=config) for s in range(TOTAL)]
    assert all(a > b for a, b in itertools.pairwise(curve))


def test_a_warm_up_as_long_as_the_run_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs = 5.0 is 50 of 50 steps"):
        lr_at(0, total_steps=50, steps_per_epoch=10, base_lr=1.0, config=ScheduleConfig())


@pytest.mark.parametrize(
    "options",
    [{"warmup_epochs": -1.0}, {"start_factor": 1.5}, {"final_lr": -0.1}, {"name": "constant", "final_lr": 0.1}],
)
def test_bad_settings_are_errors(options: dict) -> None:
    with pytest.raises(ValueError, match=next(reversed(options))):
        ScheduleConfig(**options)
