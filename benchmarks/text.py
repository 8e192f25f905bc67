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
    return textwrap.wrap(
        line, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def fitted(head: str, parts: Sequence[str]) -> list[str]:
    """The parts behind `head`, as many on a line as have room; the next lines begin under the first part."""
    lines = [head + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 3 + len(part) > columns():
            lines.append(" " * len(head) + part)
        else:
            lines[-1] += "   " + part
    return lines


def tabulated(rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    """Cells below each other, the first `num_left` columns to the left, the others to the right. What is too wide goes
    on below, in a table of its own that begins with the first column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks, room = [[0]], columns() - 2 - widths[0]
    for place, width in enumerate(widths[1:], 1):
        if room < width + 2 and blocks[-1] != [0]:
            blocks.append([0])
            room = columns() - 2 - widths[0]
        blocks[-1].append(place)
        room -= width + 2
    lines = []
    for number, block in enumerate(blocks):
        lines += [""] if number else []
        for row in rows:
            cells = [
                row[place].ljust(widths[place]) if place < num_left else row[place].rjust(widths[place])
                for place in block
            ]
            lines.append("  " + "  ".join(cells).rstrip())
    return lines
