"""`bench.py plot`: results (`record`) → pictures; with --readme also the pages that show them.

    BENCHMARK-by-SETTING    results that differ in nothing but samples, threads, image size, or ranks
    peers-FILE              ours beside the peers

The pages are benchmarks/README.md, for each benchmark a table with a line a program, and the table of the peers in the
project's README. Nothing in them is written by hand; a test holds that.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from benchmarks import record
from benchmarks.peers.registry import OURS
from benchmarks.record import JSON, Result
from benchmarks.tables import COLUMNS, cells, columns_of, ratio_cell
from benchmarks.text import shown_rate
from training.report.curves import FAINT, INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent
RESULTS, PLOTS = FOLDER / "results", FOLDER / "plots"
PAGE, FRONT = FOLDER / "README.md", FOLDER.parent / "README.md"
SETTINGS = {"num_samples": "samples in the dataset", "threads": "decode threads", "image_size": "image size, pixels",
            "ranks": "ranks"}  # fmt: skip
# results that differ in these are of one kind; growth.py names the datasets that repeat the same images by their size
UNIMPORTANT = ("seconds", "repeats", "machine_config", "num_samples")
BEGIN, END = "<!-- peers: written by `python bench.py plot --readme` -->", "<!-- end of peers -->"
HEAD = """# Benchmarks

Written by `python bench.py plot --readme` from the files in [results/](results/); do not edit it. docs/benchmarking.md
says how things are measured. Images/s are medians [least–most of the repeats]; *ratio* is that of the first program of
the same result to this one, measured in turn, with its 95 % interval. Each result has its command, typed in the
repository's root, every repeat, and what was warned of.
"""
MANY = 1000  # samples; of fewer the name of the data says enough
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDE = 100  # times: a longer axis has a logarithmic scale


class Figure(NamedTuple):
    """One picture: images/s of each repeat, over x for each line's name, or by a bar's name."""

    name: str
    title: str
    x: str = ""
    lines: dict[str, dict[int, list[float]]] = {}
    bars: dict[str, list[float]] = {}


def read(paths: Sequence[Path], say: Callable[[str], None]) -> dict[Path, Result]:
    """The results, by name, numbers in it by their value; `say` gets a line about each file that is none, or of another
    format."""
    found = {}
    for path in sorted(paths, key=lambda path: [part.zfill(9) for part in re.split(r"(\d+)", str(path))]):
        try:
            found[path] = record.read(path)
        except ValueError as error:
            say(f"skipped {error}")
    return found


def device_of(result: Result) -> str:
    env = result.env
    if result.settings.get("device") == "cuda":
        return str(env.get("gpu"))
    return f"{env.get('cpu')}, {env.get('cores_allowed') or 0:g} cores"


def figures(results: dict[Path, Result]) -> list[Figure]:
    """All the pictures that these results are enough for."""
    found = [figure for setting in SETTINGS for figure in _by_setting(list(results.values()), setting)]
    for path, result in results.items():
        if result.benchmark == "peers" and result.programs:
            order = sorted(result.programs, key=lambda name: -result.programs[name].median)
            title = f"{setting_of(result.settings)}, {device_of(result)}"
            bars = {name: result.programs[name].images_per_s for name in order}
            found.append(Figure(f"peers-{path.stem.removeprefix('peers-')}", title, bars=bars))
    return found


def _by_setting(results: Sequence[Result], setting: str) -> list[Figure]:
    """A figure a benchmark, with a line for each program and device that was measured at two values or more."""
    taken: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(dict)
    names: dict[tuple[str, ...], str] = {}
    for result in sorted(results, key=lambda one: one.time):  # the newest of two with the same value stays
        if (value := result.settings.get(setting)) is None:
            continue
        same = {key: one for key, one in result.settings.items() if key not in (*UNIMPORTANT, setting)}
        if setting == "num_samples":
            same["data"] = str(same.get("data")).removesuffix(f"-{value}")
        for program, measured in result.programs.items():
            kind = result.benchmark, program, device_of(result), json.dumps(same, sort_keys=True)
            taken[kind][value] = measured.images_per_s
            names[kind] = f"{program}, {setting_of(same)}, {device_of(result)}"
    lines: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(dict)
    for kind, points in sorted(taken.items()):
        if len(points) > 1:
            lines[kind[0]][names[kind]] = dict(sorted(points.items()))
    about = SETTINGS[setting]
    return [
        Figure(f"{name}-by-{setting.replace('_', '-')}", f"{name} by {about.split(',')[0]}", about, found)
        for name, found in lines.items()
    ]


def setting_of(settings: JSON) -> str:
    """What was measured, in a few words."""
    shown = [Path(str(settings["data"])).name] if settings.get("data") else []
    if "model" in settings:
        shown.append(f"{settings['model']} {settings.get('precision', '')}".strip())
    if settings.get("num_samples", 0) >= MANY:
        shown.append(f"{settings['num_samples']:,} samples")
    words = {"batch_size": "× {}", "image_size": "{} px", "threads": "{} threads"}
    shown += [text.format(settings[key]) for key, text in words.items() if key in settings]
    return ", ".join([*shown, f"{settings['ranks']} ranks"] if settings.get("ranks", 1) > 1 else shown)


def draw(figure: Figure, folder: Path) -> Path:
    """Write a figure's PNG, which is the same bytes each time, for print and for colour-blind readers: Okabe and Ito's
    colours, another marker for each line, hatches for bars. Returns its path."""
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
        ranges = [(middle - min(rates), max(rates) - middle) for middle, rates in zip(middles, points.values(), strict=True)]
        axes.errorbar(
            list(points), middles, list(zip(*ranges, strict=True)), color=PALETTE[number % len(PALETTE)], label=name,
            marker=MARKERS[number % len(MARKERS)], linewidth=1.5, markersize=5, capsize=2, elinewidth=0.8,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_ylabel("images/s, median and range")
    axes.set_xlabel(figure.x)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    places = sorted({x for points in figure.lines.values() for x in points})
    if places[-1] >= WIDE * places[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.legend(loc="lower right", frameon=False, fontsize=8)


def _draw_bars(axes: "Axes", figure: Figure) -> None:
    for place, (name, rates) in enumerate(figure.bars.items()):
        middle, ours = statistics.median(rates), name == OURS
        look = {"color": PALETTE[1], "hatch": "//"} if ours else {"color": PALETTE[0]}
        axes.barh(place, middle, edgecolor="white", height=0.7, **look)
        axes.plot([min(rates), max(rates)], [place, place], color=INK, linewidth=1, marker="|")
        axes.annotate(shown_rate(middle), (max(rates), place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(figure.bars)), list(figure.bars))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(max(rates) for rates in figure.bars.values()))
    axes.set_xlabel("images/s, median and range")


# --- pages


def write_front(file: Path, folder: Path = RESULTS) -> None:
    """Put the table of the peers where the project's README has its place.

    Raises ValueError where it has none.
    """
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file}: has no place for the table of the peers; put {BEGIN} and {END} there")
    table = peers_table(list(read(list(folder.glob("peers-*.json")), lambda line: None).values()))
    file.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def peers_table(results: Sequence[Result]) -> str:
    """A line a program, a column a set of images: images/s and how many times as fast ours is. The programs are in the
    order of the first column that has them, the fastest first."""
    measured = [one for one in results if one.programs]
    measured.sort(
        key=lambda one: (-one.settings["image_size"], statistics.fmean(f.median for f in one.programs.values()))
    )
    names = dict.fromkeys(
        name for one in measured for name in sorted(one.programs, key=lambda name: -one.programs[name].median)
    )
    heads = [f"{Path(one.settings['data']).name}, {one.settings['image_size']} px" for one in measured]
    lines = [_row(["images/s (ours / theirs)", *heads]), _row(["---", *("---:" for _ in heads)])]
    for name in names:
        shown = [name]
        for one in measured:
            ratio = one.ratios.get(f"{OURS} / {name}")
            times = f" ({ratio.median:.2f})" if ratio else ""
            shown.append(f"{shown_rate(one.programs[name].median)}{times}" if name in one.programs else "–")
        lines.append(_row(shown))
    return "\n".join(lines)


def page(folder: Path = RESULTS) -> str:
    """The whole text, from the results in a folder."""
    on_gpus = sorted(folder.glob("gpu-*.json"))  # of `benchmarks.gpu`, in a format of its own
    files = [path for path in sorted(folder.glob("*.json")) if path not in on_gpus]
    results = read(files, lambda line: None)
    pictures = figures(results)
    parts = [HEAD]
    for benchmark in sorted({result.benchmark for result in results.values()}):
        of_it = {path: result for path, result in results.items() if result.benchmark == benchmark}
        parts.append(section(benchmark, of_it, [one for one in pictures if one.name.startswith(f"{benchmark}-")]))
    if left_out := [path for path in files if path not in results]:
        parts.append(f"Not shown, being of another format: {_names(left_out)}.\n")
    if on_gpus:
        parts.append(f"Of `python -m benchmarks.gpu`, in tables in [docs/gpu.md](../docs/gpu.md): {_names(on_gpus)}.\n")
    return "\n".join(parts)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(f"`{path.name}`" for path in paths)


def section(benchmark: str, results: dict[Path, Result], pictures: Sequence[Figure]) -> str:
    """One benchmark: the command of its first result, a table, remarks, plots."""
    columns = columns_of(list(results.values()))
    head = ["program", "images/s", "ratio", *(COLUMNS[column][0] for column in columns), "result", "device"]
    table, remarks = [_row(head), _row(["---"] * len(head))], []
    for path, result in results.items():
        about = [f"[{setting_of(result.settings)}](results/{path.name})", device_of(result)]
        for name, measured in result.programs.items():
            rates, *more = cells(measured, columns)
            ratios = [ratio_cell(one) for key, one in result.ratios.items() if _is_below(name, key)]
            table.append(_row([name, rates, *(ratios[:1] or ["–"]), *more, *about]))
        if "explain" in result.more:
            remarks.append(f"{path.stem}: bottleneck {result.more['explain']['bottleneck']}")
        for what in ("skipped", "failed"):
            remarks += [f"{path.stem}: {name} {what}: {why}" for name, why in result.more.get(what, {}).items()]
    if num_warnings := sum(len(result.warnings) for result in results.values()):
        remarks.append(f"{num_warnings} warnings of unsteady programs, repeats that differ, or other processes")
    first = next(iter(results.values())).command
    lines = [f"## {benchmark}", "", f"    {first}", "", *table, "", *(f"- {line}" for line in remarks)]
    for figure in pictures:
        lines += ["", f"![{figure.title}]({PLOTS.name}/{figure.name}.png)"]
    return "\n".join([*lines, ""])


def _is_below(program: str, ratio: str) -> bool:
    """Whether a ratio's denominator is this program, or several of it."""
    below = ratio.partition(" / ")[2]
    return below == program or below.endswith(f" × {program})")


def _row(shown: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in shown)} |"


@click.command(name="plot")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="[RESULT]…")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=str(PLOTS), help="Folder for pictures."
)
@click.option(
    "--readme",
    is_flag=True,
    help="Write benchmarks/README.md, and README.md's table, too, from benchmarks/results alone.",
)
def command(files: tuple[Path, ...], out: Path, readme: bool) -> None:
    """Draw results that `--json` wrote (without RESULT, those of benchmarks/results).

    Against samples, threads, image size and ranks, where results differ in one of them; ours beside the peers.
    """
    if readme and (files or out != PLOTS):
        raise ValueError("--readme draws what benchmarks/README.md shows, where it is; give neither RESULT nor --out")
    found = read(files or list(RESULTS.glob("*.json")), lambda line: click.echo(line, err=True))
    pictures = figures(found)
    for figure in pictures:
        click.echo(draw(figure, out))
    if not pictures:
        click.echo("nothing to draw: that takes results of peers, or two results that differ in one setting alone")
    if readme:
        PAGE.write_text(page(), encoding="utf-8")
        write_front(FRONT)
        click.echo(f"{PAGE} {FRONT}")
