"""The chart of `--show-schedule`, read back from its characters."""

from dataclasses import replace

import pytest

from penstock.model.config import ScheduleConfig
from penstock.model.schedule import lr_at
from penstock.recipes import Recipe, TrainConfig
from penstock.recipes.phases import PhasesConfig
from penstock.recipes.show import HEIGHT, schedule_chart

BLOCKS = " ▁▂▃▄▅▆▇█"
PHASES = PhasesConfig(start_epochs=(0, 3, 7, 50), image_size=(96, 96, 128, 160), augment_strength=(0.2, 0.5, 1.0, 1.0))
RECIPE = Recipe(
    schedule=ScheduleConfig(name="linear", warmup_epochs=2, start_factor=0.0),
    train=TrainConfig(epochs=16, global_batch_size=4096),
)


def _heights(chart: str, columns: int) -> list[int]:
    """Eighths of a row in each column of the curve; what is blank at a line's end is not printed."""
    rows = [line.split("│")[1] for line in chart.splitlines() if "│" in line]
    assert len(rows) == HEIGHT
    assert max(map(len, rows)) <= columns
    return [sum(BLOCKS.index(row.ljust(columns)[i]) for row in rows) for i in range(columns)]


@pytest.mark.parametrize("width", [24, 40, 80, 100])
@pytest.mark.parametrize(
    "schedule",
    [
        RECIPE.schedule,
        ScheduleConfig(name="cosine", warmup_epochs=0.01),
        ScheduleConfig(name="step", milestones=(5.0, 9.0), warmup_epochs=0),
        ScheduleConfig(name="constant", warmup_epochs=0),
    ],
    ids=lambda schedule: schedule.name,
)
def test_the_curve_is_the_schedule(schedule: ScheduleConfig, width: int) -> None:
    recipe = replace(RECIPE, schedule=schedule)
    columns = width - 9
    heights = _heights(schedule_chart(recipe, width), columns)
    base_lr = recipe.optimizer.lr
    curve = [lr_at(16 * i / 10_000, epochs=16, base_lr=base_lr, config=schedule) for i in range(10_001)]
    for i, height in enumerate(heights):
        inside = curve[10_000 * i // columns : 10_000 * (i + 1) // columns + 2]
        # half an eighth of a row, and what the curve does between two samples of a column
        assert height / (8 * HEIGHT) == pytest.approx(max(inside) / max(curve), abs=0.6 / 8 / HEIGHT + 0.005)
        assert height >= (max(inside) > 0)  # what is little is seen all the same


@pytest.mark.parametrize(("width", "longest"), [(1, 24), (24, 24), (57, 57), (100, 100), (1000, 100)])
def test_no_line_is_longer_than_the_width(width: int, longest: int) -> None:
    recipe = replace(RECIPE, phases=PHASES)
    assert max(map(len, schedule_chart(recipe, width).splitlines())) <= longest


def test_the_terminals_width_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert schedule_chart(RECIPE) == schedule_chart(RECIPE, 40)


def test_numbers_of_the_learning_rate() -> None:
    lines = schedule_chart(RECIPE, 100).splitlines()
    assert "lr: 0 at epoch 0, peak 0.1 at 2, 0 at 16" in lines
    axis = next(line for line in lines if line.startswith("epoch"))
    assert axis.split() == ["epoch", "0", "4", "8", "12", "16"]
    assert axis.index(" 8") == pytest.approx(9 + 91 / 2, abs=2)


def test_only_what_changes_is_told() -> None:
    chart = schedule_chart(RECIPE, 100)
    assert "image size: 224 px\nglobal batch: 4096" in chart
    assert "augmentation" not in chart
    phased = schedule_chart(replace(RECIPE, phases=PHASES), 100)
    assert "image size: 96 px, 128 px from epoch 7\nglobal batch: 4096\n" in phased
    assert phased.endswith("augmentation: 0.2, 0.5 from epoch 3, 1 from epoch 7")
    batches = PhasesConfig(start_epochs=(0, 4), global_batch_size=(512, 256))
    assert "global batch: 512, 256 from epoch 4" in schedule_chart(replace(RECIPE, phases=batches), 100)


def test_a_schedule_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="warm-up must end before the run does"):
        schedule_chart(replace(RECIPE, train=TrainConfig(epochs=2)))
