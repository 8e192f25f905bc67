"""A result's figures as table cells, one row per program, for the terminal and for the pages of `plot`."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.benchmarks.measure import Ratio
from penstock.benchmarks.text import shown_rate

if TYPE_CHECKING:  # `record` imports torch, which --help does not need
    from penstock.benchmarks.record import Figures, Result

COLUMNS = {  # field of `Figures` → heading, factor to the heading's unit
    "data_wait": ("data wait, %", 100.0),
    "gigabytes_per_s": ("GB/s", 1.0),
    "cpu_s": ("CPU ms an image", 1e3),
    "workers": ("workers", 1.0),
    "memory_mb": ("memory, MB", 1.0),
    "first_batch_s": ("first batch, s", 1.0),
    "prepare_s": ("preparing, s", 1.0),
    "size_bytes": ("on disk, MB", 1e-6),
}


def columns_of(results: "Sequence[Result]") -> list[str]:
    """Return the columns that have figures. Waiting is shown for training only, since a loader alone always waits."""
    return [
        column
        for column in COLUMNS
        if any(
            getattr(figures, column) and (column != "data_wait" or result.benchmark == "train")
            for result in results
            for figures in result.programs.values()
        )
    ]


def cells(figures: "Figures", columns: Sequence[str]) -> list[str]:
    """Return the cell of the rates, then one cell per column."""
    return [rates_cell(figures.images_per_s), *(_cell(figures, column) for column in columns)]


def rates_cell(rates: Sequence[float]) -> str:
    return f"{shown_rate(statistics.median(rates))} [{shown_rate(min(rates))}–{shown_rate(max(rates))}]"


def ratio_cell(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}–{ratio.high:.2f}]"


def _cell(figures: "Figures", column: str) -> str:
    value = getattr(figures, column)
    if value is None:
        return "–"
    number = COLUMNS[column][1] * (statistics.median(value) if isinstance(value, list) else value)
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"
