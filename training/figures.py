"""Format figures for people, in the same way in the terminal and in reports. Unknown values become "–"."""

import math
from typing import TypeGuard


def rate(per_second: object) -> str:
    """Images per second: as an integer, below 10 with one decimal."""
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
    """A count of a whole: "1,000", or "100 of 1,000" for a part."""
    return f"{whole:,}" if part == whole else f"{part:,} of {whole:,}"


def number(value: object) -> float:
    """The value as a float; NaN if it is not a number."""
    return float(value) if isinstance(value, float) or is_number(value) else math.nan


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer in JSON can be too large for a float
        return False
