"""`bench.py plot`: results (`record`) → pictures; with --readme also the pages that show them.

    BENCHMARK-over-time     the same command, measured again
    BENCHMARK-by-SETTING    results that differ in nothing but samples, threads, batch size, image size, or ranks
    peers-FILE              ours beside the peers

The pages are benchmarks/README.md, for each benchmark a table with a line a program, and the table of the peers in the
project's README. Nothing in them is written by hand; a test holds that.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from benchmarks import record
from benchmarks.peers.registry import OURS
from benchmarks.text import shown_rate
from training.report.curves import FAINT, INK, PALETTE

FOLDER = Path(__file__).parent
RESULTS, PLOTS = FOLDER / "results", FOLDER / "plots"
PAGE, FRONT = FOLDER / "README.md", FOLDER.parent / "README.md"
SETTINGS = {
    "num_samples": "samples in the dataset",
    "threads": "decode threads",
    "batch_size": "batch size",
    "image_size": "image size, pixels",
    "ranks": "ranks",
}
NUMBER = re.compile(r"(\d+)")  # every other part of a split is one
# of the settings: results that differ in them are of one kind
UNIMPORTANT = ("seconds", "repeats", "machine_config", "num_samples")
BEGIN, END = "<!-- peers: written by `python bench.py plot --readme` -->", "<!-- end of peers -->"
HEAD = """# Benchmarks

Written by `python bench.py plot --readme` from the files in [results/](results/); do not edit it. docs/benchmarking.md
says how things are measured. Images/s are medians [least–most of the repeats]; *ratio* is that of the table's first
program of the same command to this one, measured in turn, with its 95 % interval. Under a table are the commands, typed
in the repository's root, with what was warned of.
"""
MANY = 1000  # samples; of fewer the name of the data says enough
MORE = {  # what some programs have besides: heading, factor
    "data_wait": ("waiting for data", 100.0, "%"),
    "gigabytes_per_s": ("GB/s", 1.0, ""),
    "cpu_s": ("CPU ms an image", 1e3, ""),
    "workers": ("workers", 1.0, ""),
    "memory_mb": ("memory, MB", 1.0, ""),
    "first_batch_s": ("first batch, s", 1.0, ""),
    "prepare_s": ("preparing, s", 1.0, ""),
    "size_bytes": ("on disk, MB", 1e-6, ""),
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
LINE_PT = 11.0  # height of a name
WIDE = 100  # times: a longer axis has a logarithmic scale

Kind = tuple[str, ...]  # benchmark, program, device, settings as JSON
Taken = dict[Kind, dict[Any, list[float]]]
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


class Result(NamedTuple):
    """A result and the file that it was read from."""

    path: Path
    content: dict[str, Any]

    @property
    def device(self) -> str:
        env = self.content["env"]
        if self.content["settings"].get("device") == "cuda":
            return str(env.get("gpu"))
        return f"{env.get('cpu')}, {env.get('cores_allowed') or 0:g} cores"


def read(paths: Sequence[Path], say: Callable[[str], None]) -> list[Result]:
    """The results, by name, numbers in it by their value; `say` gets a line about each file that is none, or of another
    format."""
    found = []
    for path in sorted(paths, key=_natural):
        try:
            found.append(Result(path, record.read(path)))
        except ValueError as error:
            say(f"skipped {error}")
    return found


def _natural(path: Path) -> list[str | int]:
    return [int(part) if place % 2 else part for place, part in enumerate(NUMBER.split(str(path)))]


def figures(results: Sequence[Result]) -> list[Figure]:
    """All the pictures that these results are enough for."""
    found = [figure for setting in SETTINGS for figure in _by_setting(results, setting)]
    return [*_over_time(results), *found, *_peers(results)]


def _kind(result: Result, program: str, without: str = "") -> Kind:
    """What must be the same of two measurements for one line: all but the setting `without`."""
    left_out, given = (*UNIMPORTANT, without), result.content["settings"]
    settings = {name: value for name, value in given.items() if name not in left_out}
    if without == "num_samples":  # studies/growth.py names the datasets that repeat the same images so
        settings["data"] = str(given.get("data")).removesuffix(f"-{given.get(without)}")
    return result.content["benchmark"], program, result.device, json.dumps(settings, sort_keys=True)


def _over_time(results: Sequence[Result]) -> list[Figure]:
    taken: Taken = defaultdict(dict)
    for result in results:
        for program, figures in result.content["programs"].items():
            when = datetime.fromisoformat(result.content["time"])
            taken[_kind(result, program)][when] = figures["images_per_s"]
    return _drawn(taken, "over-time", "", "over time")


def _by_setting(results: Sequence[Result], setting: str) -> list[Figure]:
    taken: Taken = defaultdict(dict)
    for result in sorted(results, key=lambda one: one.content["time"]):  # the newest of two with the same value stays
        value = result.content["settings"].get(setting)
        if value is not None:
            for program, figures in result.content["programs"].items():
                taken[_kind(result, program, setting)][value] = figures["images_per_s"]
    return _drawn(taken, f"by-{setting.replace('_', '-')}", SETTINGS[setting], f"by {SETTINGS[setting].split(',')[0]}")


def _drawn(taken: Taken, name: str, x: str, what: str) -> list[Figure]:
    """A figure a benchmark, of those kinds that were measured at two places or more."""
    by_benchmark: dict[str, list[tuple[Kind, Points]]] = defaultdict(list)
    for kind, points in sorted(taken.items()):
        if len(points) > 1:
            by_benchmark[kind[0]].append((kind, sorted(points.items())))
    return [
        Figure(f"{benchmark}-{name}", f"{benchmark} {what}", x, tuple(_named(group)))
        for benchmark, group in by_benchmark.items()
    ]


def _named(group: list[tuple[Kind, Points]]) -> list[Line]:
    """Lines by their program, and by what else tells them apart."""
    settings = [json.loads(kind[3]) | {"device": kind[2]} for kind, _ in group]
    differing = [
        name
        for name in dict.fromkeys(name for one in settings for name in one)
        if len({json.dumps(one.get(name)) for one in settings}) > 1
    ]
    return [
        Line(", ".join([kind[1], *(f"{name.replace('_', ' ')} {its.get(name)}" for name in differing)]), points)
        for (kind, points), its in zip(group, settings, strict=True)
    ]


def _peers(results: Sequence[Result]) -> list[Figure]:
    found = []
    for result in results:
        settings, programs = result.content["settings"], result.content["programs"]
        if result.content["benchmark"] == "peers" and programs:
            rates = [(name, figures["images_per_s"]) for name, figures in programs.items()]
            rates.sort(key=lambda pair: -statistics.median(pair[1]))
            what = f"{Path(settings['data']).name}, {settings['image_size']} px"
            title = f"{what}, {settings['threads']} threads, {result.device}"
            name = f"peers-{result.path.stem.removeprefix('peers-')}"
            found.append(Figure(name, title, bars=tuple(rates)))
    return found


# --- pictures


def draw(figure: Figure, folder: Path) -> Path:
    """Write a figure's PNG, which is the same bytes each time, for print and for colour-blind readers: Okabe and Ito's
    colours, other markers and dashes for each line, hatches for bars, names at the lines' ends. Returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"hatch.linewidth": 0.8, "font.size": 9, "text.color": INK}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}.png"
    with plt.rc_context(style):
        size = (7.0, 4.0) if figure.lines else (7.0, 0.8 + 0.3 * len(figure.bars))
        drawing, axes = plt.subplots(figsize=size, layout="constrained")
        axes.set_title(figure.title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if figure.lines:
            _draw_lines(axes, figure)
        else:
            _draw_bars(axes, figure)
        drawing.savefig(path, dpi=150)
        plt.close(drawing)
    return path


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
        middle, ours = statistics.median(rates), name == OURS
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
    table = peers_table(read(list(folder.glob("*.json")), lambda line: None))
    file.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def peers_table(results: Sequence[Result]) -> str:
    """A line a program, a column a set of images: images/s and how many times as fast ours is. The programs are in the
    order of the first column that has them, the fastest first."""
    measured = [one.content for one in results if one.content["benchmark"] == "peers" and one.content["programs"]]
    measured.sort(key=lambda content: (-content["settings"]["image_size"], _mean_rate(content)))
    names = dict.fromkeys(
        name
        for content in measured
        for name in sorted(content["programs"], key=lambda name: -_middle(content, name))
    )  # fmt: skip
    heads = [f"{Path(one['settings']['data']).name}, {one['settings']['image_size']} px" for one in measured]
    lines = [_row(["images/s (ours / theirs)", *heads]), _row(["---", *("---:" for _ in heads)])]
    for name in names:
        cells = [name]
        for content in measured:
            one = content["ratios"].get(f"{OURS} / {name}")
            times = f" ({one['median']:.2f})" if one else ""
            cells.append(f"{_number(_middle(content, name))}{times}" if name in content["programs"] else "–")
        lines.append(_row(cells))
    return "\n".join(lines)


def _middle(content: Mapping[str, Any], name: str) -> float:
    return statistics.median(content["programs"][name]["images_per_s"])


def _mean_rate(content: Mapping[str, Any]) -> float:
    return statistics.fmean(_middle(content, name) for name in content["programs"])


def page(folder: Path = RESULTS) -> str:
    """The whole text, from the results in a folder."""
    on_gpus = sorted(folder.glob("gpu-*.json"))  # of `benchmarks.gpu`, in a format of its own
    files = [path for path in sorted(folder.glob("*.json")) if path not in on_gpus]
    results = read(files, lambda line: None)
    pictures = figures(results)
    parts = [HEAD]
    for benchmark in sorted({result.content["benchmark"] for result in results}):
        parts.append(section(benchmark, [one for one in results if one.content["benchmark"] == benchmark], pictures))
    if left_out := [path for path in files if path not in {result.path for result in results}]:
        parts.append(f"Not shown, being of another format: {_names(left_out)}.\n")
    if on_gpus:
        parts.append(f"Of `python -m benchmarks.gpu`, in tables in [docs/gpu.md](../docs/gpu.md): {_names(on_gpus)}.\n")
    return "\n".join(parts)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(f"`{path.name}`" for path in paths)


def section(benchmark: str, results: Sequence[Result], pictures: Sequence[Figure]) -> str:
    """One benchmark: table, remarks, plots."""
    columns = [key for key in MORE if any(_has(result, key) for result in results)]
    head = ["program", "images/s", "ratio", *(MORE[key][0] for key in columns), "setting", "device"]
    lines = [f"## {benchmark}", "", _row(head), _row(["---"] * len(head))]
    for result in results:
        lines += [_row(cells) for cells in rows(result, columns)]
    lines.append("")
    for result in results:
        link = f"- [{result.path.name}](results/{result.path.name}): "
        lines += [f"{link}{line}" for line in (f"`{result.content['command']}`", *said(result))]
    for figure in pictures:
        if figure.name.startswith(f"{benchmark}-"):
            lines += ["", f"![{figure.title}]({PLOTS.name}/{figure.name}.png)"]
    return "\n".join([*lines, ""])


def _has(result: Result, key: str) -> bool:
    """Whether a column tells something about a result: waiting does of training only."""
    programs = result.content["programs"].values()
    return any(program.get(key) for program in programs) and (
        key != "data_wait" or result.content["benchmark"] == "train"
    )


def rows(result: Result, columns: Sequence[str]) -> list[list[str]]:
    """The cells of each program of a result."""
    content = result.content
    about = [setting_of(content["settings"]), result.device]
    if not content["programs"]:
        return [["–", "–", "–", *("–" for _ in columns), *about]]
    found = []
    for name, program in content["programs"].items():
        rates = program["images_per_s"]
        rate = f"{_number(statistics.median(rates))} [{_number(min(rates))}–{_number(max(rates))}]"
        more = [_cell(program.get(key), *MORE[key][1:]) for key in columns]
        found.append([name, rate, ratio(name, content["ratios"]), *more, *about])
    return found


def ratio(program: str, ratios: Mapping[str, Mapping[str, float]]) -> str:
    """The ratio whose denominator is this program, or several of it."""
    for name, one in ratios.items():
        below = name.partition(" / ")[2]
        if below == program or below.endswith(f" × {program})"):
            return f"{one['median']:.2f} [{one['low']:.2f}–{one['high']:.2f}]"
    return "–"


def setting_of(settings: Mapping[str, Any]) -> str:
    """What was measured, in a few words."""
    data = Path(str(settings.get("data", ""))).name
    shown = [data] if data else []
    if "model" in settings:
        shown.append(f"{settings['model']} {settings.get('precision', '')}".strip())
    if settings.get("num_samples", 0) >= MANY:
        shown.append(f"{settings['num_samples']:,} samples")
    units = {"batch_size": "× ", "image_size": " px", "threads": " threads"}
    for key, unit in units.items():
        if key in settings:
            shown.append(f"{unit}{settings[key]}" if unit == "× " else f"{settings[key]}{unit}")
    if settings.get("ranks", 1) > 1:
        shown.append(f"{settings['ranks']} ranks")
    return ", ".join(shown)


def said(result: Result) -> list[str]:
    """Remarks: what `explain` and `peers` say besides, and the warnings of the measurement."""
    content, found = result.content, []
    if "explain" in content:
        explained = content["explain"]
        found.append(f"bottleneck: {explained['bottleneck']}")
        found += [f"{change['expected']:.2f} times expected of `{change['option']}`" for change in explained["advice"]]
        if explained["applied"]:
            applied = explained["applied"]
            options = " ".join(applied["options"])
            found.append(
                f"applied `{options}`: {applied['expected']:.2f} expected, {applied['seen']['median']:.2f} seen"
            )
    for what in ("skipped", "failed"):
        found += [f"{name} {what}: {why}" for name, why in content.get(what, {}).items()]
    return [*found, *(f"warning: {line}" for line in content["warnings"])]


def _cell(value: Any, factor: float, unit: str) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    number = statistics.median(value) if isinstance(value, list) else value
    return f"{_number(number * factor)}{unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in cells)} |"


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

    Over time; against samples, threads, batch size, image size and ranks, where results differ in one of them; ours
    beside the peers.
    """
    if readme and (files or out != PLOTS):
        raise ValueError("--readme draws what benchmarks/README.md shows, where it is; give neither RESULT nor --out")
    found = read(files or list(RESULTS.glob("*.json")), lambda line: click.echo(line, err=True))
    pictures = figures(found)
    for figure in pictures:
        click.echo(draw(figure, out))
    if not pictures:
        click.echo("nothing to draw: that takes results of peers, or two results that differ in time or in one setting")
    if readme:
        PAGE.write_text(page(), encoding="utf-8")
        write_front(FRONT)
        click.echo(f"{PAGE} {FRONT}")
