"""The schedule of a recipe as text for a terminal, which `train.py --show-schedule` prints."""

import shutil
import textwrap
from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby

from penstock.model.schedule import lr_at, warmup_of
from penstock.recipes import Recipe, recipe_at

HEIGHT = 10  # rows of the curve
MIN_WIDTH, MAX_WIDTH = 24, 100
_BLOCKS = " ▁▂▃▄▅▆▇█"  # eighths of a row
_GUTTER = 9  # columns left of the curve
_SAMPLES = 8  # points of the curve in a column, so that the top of a narrow peak is visible


def schedule_chart(recipe: Recipe, width: int | None = None) -> str:
    """A chart of the learning rate over the epochs, then a line for each other setting that changes between epochs.

    `width` is in columns, limited to 24 to 100; None uses the terminal's. No line is longer.

    Raises ValueError if the schedule does not fit the run's length.
    """
    width = max(MIN_WIDTH, min(width or shutil.get_terminal_size().columns, MAX_WIDTH))
    columns, epochs = width - _GUTTER, recipe.train.epochs
    grid = [epochs * i / (columns * _SAMPLES) for i in range(columns * _SAMPLES + 1)]
    curve = {epoch: _lr(recipe, epoch) for epoch in sorted({*grid, warmup_of(recipe.schedule, epochs)})}
    tops = [max(curve[e] for e in grid[i * _SAMPLES : (i + 1) * _SAMPLES + 1]) for i in range(columns)]
    peak = max(curve, key=lambda epoch: curve[epoch])
    lines = ["learning rate".rjust(_GUTTER + len("learning rate")), *_curve(tops, curve[peak]), _axis(columns, epochs)]
    facts = {
        "lr": f"{curve[0.0]:.3g} at epoch 0, peak {curve[peak]:.3g} at {peak:.3g}, {curve[epochs]:.3g} at {epochs}",
        "image size": _by_epoch([recipe_at(recipe, epoch).data.image_size for epoch in range(epochs)], " px"),
        "global batch": _by_epoch([recipe_at(recipe, epoch).train.global_batch_size for epoch in range(epochs)]),
    }
    if recipe.phases.augment_strength:
        phase_of = [bisect_right(recipe.phases.start_epochs, epoch) - 1 for epoch in range(epochs)]
        facts["augmentation"] = _by_epoch([recipe.phases.augment_strength[phase] for phase in phase_of])
    for name, fact in facts.items():
        lines += textwrap.wrap(f"{name}: {fact}", width, subsequent_indent="  ")
    return "\n".join(line.rstrip() for line in lines)


def _lr(recipe: Recipe, epoch: float) -> float:
    return lr_at(epoch, epochs=recipe.train.epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule)


def _curve(values: Sequence[float], top: float) -> list[str]:
    """A column of blocks for each value, `HEIGHT` rows from `top` down to 0. A value above 0 is always visible."""
    eighths = [max(round(8 * HEIGHT * value / top), value > 0) for value in values]
    labels = {HEIGHT - 1: f"{top:.3g}", HEIGHT // 2 - 1: f"{top / 2:.3g}"}
    rows = []
    for row in reversed(range(HEIGHT)):
        blocks = "".join(_BLOCKS[max(0, min(8, n - 8 * row))] for n in eighths)
        rows.append(f"{labels.get(row, ''):>{_GUTTER - 2}} │{blocks}")
    return rows


def _axis(columns: int, epochs: int) -> str:
    """Epoch numbers below their columns, as many as fit."""
    line = list("epoch".ljust(_GUTTER + columns))
    for share in (0, 1, 0.5, 0.25, 0.75):
        label = f"{epochs * share:g}"
        start = _GUTTER + min(round(share * columns), columns - len(label))
        if "".join(line[max(_GUTTER, start - 1) : start + len(label) + 1]).strip() == "":
            line[start : start + len(label)] = label
    return "".join(line)


def _by_epoch(values: Sequence[float], unit: str = "") -> str:
    """Values of the epochs 0, 1, … → "160 px, 192 px from epoch 12"."""
    parts, epoch = [], 0
    for value, run in groupby(values):
        parts.append(f"{value:g}{unit} from epoch {epoch}" if epoch else f"{value:g}{unit}")
        epoch += len(list(run))
    return ", ".join(parts)
