"""`bench.py plot`: results (`record`) → pictures, each as PNG and SVG; with --readme also benchmarks/README.md.

    BENCHMARK-over-time     the same command, measured again
    BENCHMARK-by-SETTING    results that differ in nothing but samples, threads, batch size, image size, or ranks
    peers-FILE              ours beside the peers

Here results are chosen; `drawing` draws them.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks import record
from benchmarks.drawing import Figure, Line, Points, draw
from benchmarks.peers.registry import OURS

FOLDER = Path(__file__).parent
RESULTS, PLOTS = FOLDER / "results", FOLDER / "plots"
SETTINGS = {
    "num_samples": "samples in the dataset",
    "threads": "decode threads",
    "batch_size": "batch size",
    "image_size": "image size, pixels",
    "ranks": "ranks",
}
NUMBER = re.compile(r"(\d+)")  # every other part of a split is one
UNIMPORTANT = (
    "seconds",
    "repeats",
    "machine_config",
    "num_samples",
)  # of the settings: results that differ in them are of one kind


Kind = tuple[str, ...]  # benchmark, program, device, settings as JSON
Taken = dict[Kind, dict[Any, list[float]]]


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
            found.append(Figure(name, title, bars=tuple(rates), ours=OURS))
    return found


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
    """Draw results that `--json` wrote (without RESULT, those of benchmarks/results) as PNG and SVG.

    Over time; against samples, threads, batch size, image size and ranks, where results differ in one of them; ours
    beside the peers.
    """
    from benchmarks import readme as page

    if readme and (files or out != PLOTS):
        raise ValueError("--readme draws what benchmarks/README.md shows, where it is; give neither RESULT nor --out")
    found = read(files or list(RESULTS.glob("*.json")), lambda line: click.echo(line, err=True))
    pictures = figures(found)
    for figure in pictures:
        click.echo(" ".join(map(str, draw(figure, out))))
    if not pictures:
        click.echo("nothing to draw: that takes results of peers, or two results that differ in time or in one setting")
    if readme:
        page.write(page.FILE)
        page.write_front(page.FRONT)
        click.echo(f"{page.FILE} {page.FRONT}")
