"""Format figures and tables for the terminal (80 columns without one), without breaking words."""

import shutil
import textwrap
from collections.abc import Sequence

MAX_COLUMNS = 100


def columns() -> int:
    """Return the terminal's width, at most MAX_COLUMNS; 80 without a terminal."""
    return max(40, min(shutil.get_terminal_size((80, 24)).columns, MAX_COLUMNS))


def shown_rate(rate: float) -> str:
    """Format images/s, with one decimal below 10 and two below 1."""
    return f"{rate:,.{0 if rate >= 9.95 else 1 if rate >= 0.995 else 2}f}"


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table, on one line."""
    return f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in cells)} |"


def wrapped(line: str) -> list[str]:
    """Wrap a line to the terminal. Continuation lines are indented two columns more than the first."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def tabulated(rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    """Align the cells of a table: the first `num_left` columns to the left, the others to the right.

    Columns that do not fit continue below, in a table of their own that repeats the first column.
    """
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
