"""`bench.py plot`: results (`record`) → pictures.

growth-SERIES    results of files growth-SERIES-NUMBER.json, a line a program
peers-FILE       ours beside the peers
explain-FILE     the stages
peers-THEME      the README's picture, light and dark
"""

import re
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.benchmarks.docs import results_page as pages
from penstock.benchmarks.peers.registry import OURS
from penstock.benchmarks.record import Result
from penstock.benchmarks.text import shown_rate
from penstock.training.report.curves import FAINT, INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"rows": "samples in the dataset", "threads": "decode threads", "image-size": "image size, pixels"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FRONT = "peers-in500-2cpu.json"  # the result that the README shows
THEMES = {"light": ("#1f2328", "#d55e00", "#8fb8d8"), "dark": ("#e6edf3", "#ff8c42", "#3f6d94")}  # ink, ours, theirs
PEERS = {"penstock": "Penstock", "ffcv-half-raw": "FFCV, half stored as pixels", "ffcv": "FFCV",
         "dali": "DALI's example", "torchvision-tensor": "torchvision v2, tensors", "litdata": "LitData",
         "tfdata": "tf.data", "torchvision-pil": "torchvision, PIL", "mosaicml": "MosaicML Streaming",
         "spdl": "SPDL", "webdataset": "WebDataset"}  # fmt: skip
WIDE = 100  # times: a longer axis has a logarithmic scale


@dataclass(frozen=True)
class Figure:
    """One picture of the images/s of each repeat: lines over x, by name, or bars, by name. marked: the bar to
    highlight."""

    name: str
    title: str
    x: str = ""
    lines: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    bars: dict[str, list[float]] = field(default_factory=dict)
    is_logarithmic: bool = False
    marked: str = OURS


def figures(results: dict[Path, Result]) -> list[Figure]:
    """Return all pictures that can be drawn from these results."""
    found, grown = [], defaultdict[str, dict[int, Result]](dict)
    for path, result in results.items():
        if matched := re.fullmatch(r"growth-(.+)-(\d+)", path.stem):
            grown[matched[1]][int(matched[2])] = result
        elif result.benchmark in ("peers", "explain") and result.programs:
            found.append(bars(result, path.stem.removeprefix(f"{result.benchmark}-")))
    for series, by_number in grown.items():
        lines = defaultdict[str, dict[int, list[float]]](dict)
        for number, result in sorted(by_number.items()):
            for name, measured in result.programs.items():
                lines[name][number] = measured.images_per_s
        x = AXES.get(series, series)
        title = f"{result.benchmark} by {x.partition(',')[0]}, {pages.device_of(result)}"
        found.append(
            Figure(f"growth-{series}", title, x, {name: line for name, line in lines.items() if len(line) > 1})
        )
    return found


def bars(result: Result, name: str) -> Figure:
    """Return the bars of a result's programs. The stages of `explain` are in the order of the data's path, on a
    logarithmic axis, with the bottleneck marked. Peers begin with the fastest, and ours is marked."""
    title = f"{pages.setting_of(result.settings)}, {pages.device_of(result)}"
    if result.benchmark != "explain":
        return Figure(f"peers-{name}", title, bars={key: one.images_per_s for key, one in pages.fastest_first(result)})
    rates = {key: one.images_per_s for key, one in result.programs.items()}
    marked = result.more.get("explain", {}).get("bottleneck", "")
    if marked:
        title += f"\nbottleneck: {marked}"
    return Figure(f"explain-{name}", title, bars=rates, is_logarithmic=True, marked=marked)


def draw(figure: Figure, folder: Path) -> Path:
    """Write a figure as PNG, with the same bytes each time. Returns its path.

    It suits print and colour-blind readers: Okabe and Ito's colours, a different marker for each line, hatched bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}.png"
    with plt.rc_context({"hatch.linewidth": 0.8, "font.size": 9, "text.color": INK}):
        size = (7.0, 4.0) if figure.lines else (7.0, 0.8 + 0.3 * len(figure.bars))
        drawing, axes = plt.subplots(figsize=size, layout="constrained")
        axes.set_title(figure.title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        (_draw_lines if figure.lines else _draw_bars)(axes, figure)
        drawing.savefig(path, dpi=150)
        plt.close(drawing)
    return path


def _draw_lines(axes: "Axes", figure: Figure) -> None:
    for number, (name, points) in enumerate(figure.lines.items()):
        middles = [statistics.median(rates) for rates in points.values()]
        below = [middle - min(rates) for middle, rates in zip(middles, points.values(), strict=True)]
        above = [max(rates) - middle for middle, rates in zip(middles, points.values(), strict=True)]
        axes.errorbar(list(points), middles, (below, above), color=PALETTE[number % len(PALETTE)], label=name,
                      marker=MARKERS[number % len(MARKERS)], markersize=5, capsize=2, elinewidth=0.8)  # fmt: skip
    places = sorted({x for points in figure.lines.values() for x in points})
    if places[-1] >= WIDE * places[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("images/s, median and range")
    axes.set_xlabel(figure.x)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.legend(loc="lower right", frameon=False)


def _draw_bars(axes: "Axes", figure: Figure) -> None:
    for place, (name, rates) in enumerate(figure.bars.items()):
        middle, look = statistics.median(rates), (PALETTE[1], "//") if name == figure.marked else (PALETTE[0], "")
        axes.barh(place, middle, color=look[0], hatch=look[1], edgecolor="white", height=0.7)
        axes.plot([min(rates), max(rates)], [place, place], color=INK, linewidth=1, marker="|")
        axes.annotate(shown_rate(middle), (max(rates), place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(figure.bars)), list(figure.bars))
    axes.invert_yaxis()
    most = max(max(rates) for rates in figure.bars.values())
    if figure.is_logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(min(rates) for rates in figure.bars.values()) / 3, 4 * most)
    else:
        axes.set_xlim(0, 1.15 * most)
    axes.set_xlabel("images/s, median and range")


def draw_all(results: dict[Path, Result], folder: Path) -> list[Path]:
    """Draw every picture that these results allow, and the README's two. Returns their paths."""
    drawn = [draw(figure, folder) for figure in figures(results)]
    front = {path.name: result for path, result in results.items()}.get(FRONT)
    return drawn + ([draw_front(front, folder, theme) for theme in THEMES] if front else [])


def draw_front(result: Result, folder: Path, theme: str) -> Path:
    """Write the README's picture of a result of `peers` as SVG, for pages with a light or a dark background. Its own
    background is transparent. Returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ink, ours, theirs = THEMES[theme]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"peers-{theme}.svg"
    programs = pages.fastest_first(result)
    style = {"font.size": 10, "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink,
             "axes.edgecolor": ink, "svg.hashsalt": "penstock"}  # fmt: skip
    with plt.rc_context(style):
        drawing, axes = plt.subplots(figsize=(7.4, 0.9 + 0.27 * len(programs)), layout="constrained")
        for place, (name, measured) in enumerate(programs):
            axes.barh(place, measured.median, color=ours if name == OURS else theirs, height=0.72)
            low, high = min(measured.images_per_s), max(measured.images_per_s)
            axes.plot([low, high], [place, place], color=ink, linewidth=1, marker="|", markersize=5)
            weight = "bold" if name == OURS else "normal"
            axes.annotate(shown_rate(measured.median), (high, place), (6, 0), textcoords="offset points",
                          va="center", weight=weight)  # fmt: skip
        axes.set_yticks(range(len(programs)), [PEERS.get(name, name) for name, _ in programs])
        axes.get_yticklabels()[[name for name, _ in programs].index(OURS)].set_weight("bold")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.1 * max(programs[0][1].images_per_s))
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(axis="x", bottom=False, labelbottom=False)
        size = result.settings["image_size"]
        axes.set_title(f"images/s, ImageNet JPEGs → random crops of {size} px, {pages.device_of(result)}", fontsize=10)
        drawing.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(drawing)
    return path


@click.command(name="plot")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="[RESULT]…")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default="plots", help="Folder for the pictures."
)
def command(files: tuple[Path, ...], out: Path) -> None:
    """Draw the results that `--json` wrote.

    One picture for each series of `benchmarks.growth`, and for each result of `peers` and `explain`. Without RESULT,
    draw those of benchmarks/results. `bench.py docs` draws the documentation's pictures.
    """
    skipped = list[str]()
    results = pages.read_files(files or list(pages.RESULTS.glob("*.json")), skipped.append)
    drawn = draw_all(results, out)
    for path in drawn:
        click.echo(path)
    if not drawn:
        skipped += ["nothing to draw: give results of peers or explain, or growth-NAME-NUMBER.json"]
    if skipped:
        raise click.ClickException("\n".join(skipped))
