"""Figures and tables for people: no wider than the terminal, 80 columns without one, and never broken inside a word."""

import shutil
import textwrap
from collections.abc import Sequence

MAX_COLUMNS = 100


def columns() -> int:
    """Of the terminal, but not too many; 80 without one."""
    return max(40, min(shutil.get_terminal_size((80, 24)).columns, MAX_COLUMNS))


def shown_rate(rate: float) -> str:
    """Images/s: with a decimal under 10, with two under 1."""
    return f"{rate:,.{0 if rate >= 9.95 else 1 if rate >= 0.995 else 2}f}"


def wrapped(line: str) -> list[str]:
    """Lines that begin as far in as the first, and two columns more."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def tabulated(rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    """Cells below each other, the first `num_left` columns to the left, the others to the right. What is too wide goes
    on below, in a table of its own that begins with the first column."""
    cells = [
        [cell.ljust(width) if place < num_left else cell.rjust(width) for cell in column]
        for place, column in enumerate(zip(*rows, strict=True))
        for width in [max(map(len, column))]
    ]
    tables = [cells[:1]]
    for column in cells[1:]:
        if 2 + sum(len(one[0]) + 2 for one in [*tables[-1], column]) - 2 > columns() and len(tables[-1]) > 1:
            tables.append(cells[:1])
        tables[-1].append(column)
    lines: list[str] = []
    for table in tables:
        lines += [""] if lines else []
        lines += ["  " + "  ".join(row).rstrip() for row in zip(*table, strict=True)]
    return lines
