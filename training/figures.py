"""Figures as people read them: the same in the terminal and in the reports. "–" for what is not known."""

import math
from typing import TypeGuard


def rate(per_second: object) -> str:
    """Images a second: whole ones, below 10 with a decimal."""
    if not is_number(per_second):
        return "–"
    return f"{per_second:,.0f}" if round(per_second, 1) >= 10 else f"{per_second:.1f}"


def duration(seconds: object) -> str:
    """Minutes and seconds, `m:ss`, from an hour on `h:mm:ss`."""
    if not is_number(seconds):
        return "–"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def count(part: int, whole: int) -> str:
    """How many of how many: "1,000", or where some are left out "100 of 1,000"."""
    return f"{whole:,}" if part == whole else f"{part:,} of {whole:,}"


def number(value: object) -> float:
    """NaN for what is none."""
    return float(value) if isinstance(value, float) or is_number(value) else math.nan


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # JSON's integers have no end
        return False
