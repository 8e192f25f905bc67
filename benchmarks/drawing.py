"""Pictures of results, for print and for colour-blind readers: figures → PNG and SVG.

Okabe and Ito's colours, other markers and dashes for each line, hatches for bars, and the names at the lines' ends
instead of a legend.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.text import shown_rate
from training.report.curves import FAINT, INK, PALETTE

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
LINE_PT = 11.0  # height of a name
WIDE = 100  # times: a longer axis has a logarithmic scale

Points = list[tuple[Any, list[float]]]  # x and the images/s of each repeat, sorted


class Line(NamedTuple):
    """A name and what is drawn for it."""

    name: str
    points: Points


class Figure(NamedTuple):
    """One picture. lines: over x; or bars: images/s of each repeat by name."""

    name: str
    title: str
    x: str = ""
    lines: tuple[Line, ...] = ()
    bars: tuple[tuple[str, list[float]], ...] = ()
    ours: str = ""  # the bar that stands out


def draw(figure: Figure, folder: Path) -> list[Path]:
    """Write a figure's PNG and SVG, which are the same bytes each time. Returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"svg.hashsalt": figure.name, "hatch.linewidth": 0.8, "font.size": 9, "text.color": INK}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{figure.name}{kind}" for kind in (".png", ".svg")]
    with plt.rc_context(style):
        size = (7.0, 4.0) if figure.lines else (7.0, 0.8 + 0.3 * len(figure.bars))
        drawing, axes = plt.subplots(figsize=size, layout="constrained")
        axes.set_title(figure.title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if figure.lines:
            _draw_lines(axes, figure)
        else:
            _draw_bars(axes, figure)
        for path in paths:
            drawing.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(drawing)
    return paths


def _draw_lines(axes: Any, figure: Figure) -> None:
    for number, line in enumerate(figure.lines):
        xs, rates = zip(*line.points, strict=True)
        middles = np.array([statistics.median(values) for values in rates])
        ranges = [middles - [min(values) for values in rates], [max(values) for values in rates] - middles]
        axes.errorbar(
            xs, middles, ranges, color=PALETTE[number % len(PALETTE)], marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number % len(DASHES)], linewidth=1.5, markersize=5, capsize=2, elinewidth=0.8,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_ylabel("images/s, median and range")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    if figure.x:
        axes.set_xlabel(figure.x)
        places = sorted({x for line in figure.lines for x, _ in line.points})
        if places[-1] >= WIDE * places[0]:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(places, [f"{place:,}" for place in places])
    else:
        axes.tick_params(axis="x", rotation=20)
    _name_lines(axes, figure.lines)


def _name_lines(axes: Any, lines: Sequence[Line]) -> None:
    """Each name right of its line's last point, moved up where another is in the way."""
    axes.figure.draw_without_rendering()
    to_pt = 72 / axes.figure.dpi
    ends = [(statistics.median(line.points[-1][1]), number) for number, line in enumerate(lines)]
    lowest = float("-inf")
    for rate, number in sorted(ends):
        at = axes.transData.transform((0, rate))[1] * to_pt
        lowest = max(at, lowest + LINE_PT)
        axes.annotate(
            lines[number].name, (lines[number].points[-1][0], rate), (8, lowest - at), textcoords="offset points",
            va="center", color=PALETTE[number % len(PALETTE)], fontsize=8, annotation_clip=False,
        )  # fmt: skip


def _draw_bars(axes: Any, figure: Figure) -> None:
    names = [name for name, _ in figure.bars]
    most = max(max(rates) for _, rates in figure.bars)
    for place, (name, rates) in enumerate(figure.bars):
        middle, ours = statistics.median(rates), name == figure.ours
        axes.barh(
            place, middle, color=PALETTE[1 if ours else 0], hatch="//" if ours else "", edgecolor="white", height=0.7
        )
        axes.plot([min(rates), max(rates)], [place, place], color=INK, linewidth=1, marker="|")
        axes.annotate(
            shown_rate(middle), (max(rates), place), (5, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * most)
    axes.set_xlabel("images/s, median and range")
