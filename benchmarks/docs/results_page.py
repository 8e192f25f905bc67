"""Results → the tables of docs/results.md: every result of `bench.py`, and a comparison of all peers."""

import functools
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.benchmarks import record
from penstock.benchmarks.peers.registry import OURS
from penstock.benchmarks.record import JSON, Figures, Result
from penstock.benchmarks.tables import COLUMNS, cells, columns_of, ratio_cell
from penstock.benchmarks.text import markdown_row, shown_rate

RESULTS = Path(__file__).resolve().parents[1] / "results"
PICTURES = Path(__file__).resolve().parents[2] / "docs/images/results"
OTHERS = ("gpu-", "run-", "first-run-")  # files of `benchmarks.gpu`, `bench.py record` and `benchmarks.docs.first_run`
MANY = 1000  # samples; for fewer the name of the data is enough


def read_files(paths: Sequence[Path], say: Callable[[str], None]) -> dict[Path, Result]:
    """Return the results, sorted by name, with numbers in names by their value. `say` is called with a line about each
    file that is not a result. Results with formats of their own (`OTHERS`) are skipped."""
    found = {}
    for path in sorted(paths, key=lambda path: [part.zfill(9) for part in re.split(r"(\d+)", str(path))]):
        try:
            if not path.name.startswith(OTHERS):
                found[path] = record.read(path)
        except ValueError as error:
            say(f"skipped {error}")
    return found


@functools.cache
def read_all() -> dict[Path, Result]:
    """Return the results in benchmarks/results. Raises ValueError for a file that is not a result."""

    def refuse(line: str) -> None:
        raise ValueError(line)

    return read_files(list(RESULTS.glob("*.json")), refuse)


def device_of(result: Result) -> str:
    env = result.env
    if result.settings.get("device") == "cuda":
        return str(env.get("gpu"))
    return f"{env.get('cpu')}, {env.get('cores_allowed') or 0:g} cores"


def setting_of(settings: JSON) -> str:
    """Describe the measured work in a few words."""
    shown = [Path(str(settings["data"])).name] if settings.get("data") else []
    if "model" in settings:
        shown.append(f"{settings['model']} {settings.get('precision', '')}".strip())
    if settings.get("num_samples", 0) >= MANY:
        shown.append(f"{settings['num_samples']:,} samples")
    words = {"batch_size": "batch {}", "image_size": "{} px", "threads": "{} threads"}
    shown += [text.format(settings[key]) for key, text in words.items() if key in settings]
    return ", ".join([*shown, f"{settings['ranks']} ranks"] if settings.get("ranks", 1) > 1 else shown)


def peers_block() -> str:
    return peers_table(list(read_all().values()))


def results_block() -> str:
    return page(read_all())


def peers_table(results: Sequence[Result]) -> str:
    """Return a table with a line per program and a column per set of images. Cells have images/s, and how many times as
    fast ours is. Programs are in the order of the first column that has them, the fastest first."""

    def size_and_rate(result: Result) -> tuple[int, float]:
        return -result.settings["image_size"], statistics.fmean(one.median for one in result.programs.values())

    measured = sorted((one for one in results if one.benchmark == "peers" and one.programs), key=size_and_rate)
    names = dict.fromkeys(name for result in measured for name, _ in fastest_first(result))
    heads = [f"{Path(one.settings['data']).name}, {one.settings['image_size']} px" for one in measured]
    lines = [markdown_row(["images/s (ours / theirs)", *heads]), markdown_row(["---", *("---:" for _ in heads)])]
    for name in names:
        shown = [name]
        for result in measured:
            ratio = result.ratios.get(f"{OURS} / {name}")
            times = f" ({ratio.median:.2f})" if ratio else ""
            shown.append(f"{shown_rate(result.programs[name].median)}{times}" if name in result.programs else "–")
        lines.append(markdown_row(shown))
    return "\n".join(lines)


def fastest_first(result: Result) -> list[tuple[str, Figures]]:
    return sorted(result.programs.items(), key=lambda program: -program[1].median)


def page(results: dict[Path, Result]) -> str:
    """Return a section for each benchmark, then the pictures."""
    from penstock.benchmarks.plot import figures

    parts = []
    for benchmark in sorted({result.benchmark for result in results.values()}):
        of_it = {path: result for path, result in results.items() if result.benchmark == benchmark}
        parts += ["\n".join(section(benchmark, of_it)), ""]
    parts += ["## Pictures", ""]
    pictures = [
        f"![{one.title.replace(chr(10), ', ')}](images/{PICTURES.name}/{one.name}.png)\n" for one in figures(results)
    ]
    return "\n".join([*parts, *pictures])


def section(benchmark: str, results: dict[Path, Result]) -> list[str]:
    """Return one benchmark's section: the command of its first result, a table, and remarks."""
    columns = columns_of(list(results.values()))
    head = ["program", "images/s", "ratio", *(COLUMNS[column][0] for column in columns), "settings", "result", "device"]
    table, remarks = [markdown_row(head), markdown_row(["---"] * len(head))], []
    for path, result in results.items():
        about = [setting_of(result.settings), f"`{path.name}`", device_of(result)]
        for name, measured in result.programs.items():
            rates, *more = cells(measured, columns)
            ratios = [ratio_cell(one) for pair, one in result.ratios.items() if pair.endswith(f" / {name}")]
            table.append(markdown_row([name, rates, *(ratios or ["–"]), *more, *about]))
        if "explain" in result.more:
            remarks.append(f"- {path.stem}: bottleneck {result.more['explain']['bottleneck']}")
        for outcome in ("skipped", "failed"):
            whys = result.more.get(outcome, {})
            remarks += [f"- {path.stem}: {name} {outcome}: {why}" for name, why in whys.items()]
    if num_warnings := sum(len(result.warnings) for result in results.values()):
        remarks.append(f"- {num_warnings} warnings: a program was not steady, repeats differ, or other programs ran")
    first = next(iter(results.values()))
    return [f"## `bench.py {benchmark}`", "", "```bash", first.command, "```", "", *table, "", *remarks]
