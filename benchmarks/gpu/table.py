"""The last thing that is printed, and `summary.json`: a stage a paragraph, a figure a line."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.report import figure_text

HEAD = ("stage", "figure", "expected", "verdict")
MAX_WHAT, MAX_FIGURE = 48, 66


def summary(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each stage its verdict and the figures that the table shows."""
    kept = ("what", "figure", "unit", "min", "max", "text", "expected", "verdict")
    return [
        {name: result[name] for name in ("part", "stage", "verdict", "seconds")}
        | {"figures": [{name: row.get(name) for name in kept} for row in result["figures"] if _shown(row)]}
        for result in results
    ]


def table(results: Sequence[dict[str, Any]]) -> str:
    """A line a stage with its verdict, then one for each of its figures."""
    rows = [HEAD, *(row for result in results for row in _rows(result))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    yield f"{result['part']} {result['stage']}", f"{result['seconds']:.0f} s", "", result["verdict"]
    for row in result["figures"]:
        if _shown(row):
            figure = figure_text(row)
            cut = figure if len(figure) <= MAX_FIGURE else f"{figure[: MAX_FIGURE - 1]}…"
            yield f"  {row['what'][:MAX_WHAT]}", cut, row["expected"], row["verdict"]


def _shown(row: dict[str, Any]) -> bool:
    """What is bad is always shown."""
    return bool(row["shown"]) or row["verdict"].startswith(("failed", "wrong"))
