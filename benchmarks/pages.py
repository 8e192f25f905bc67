"""Results → the text of benchmarks/README.md, and the table of the peers in the project's README.

Nothing in them is written by hand; a test holds that.
"""

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.benchmarks import record
from penstock.benchmarks.peers.registry import OURS
from penstock.benchmarks.record import JSON, Figures, Result
from penstock.benchmarks.tables import COLUMNS, cells, columns_of, ratio_cell
from penstock.benchmarks.text import shown_rate

FOLDER = Path(__file__).resolve().parent
RESULTS, PLOTS = FOLDER / "results", FOLDER / "plots"
PAGE, FRONT = FOLDER / "README.md", FOLDER.parent / "README.md"
BEGIN, END = "<!-- peers: written by `python bench.py plot --readme` -->", "<!-- end of peers -->"
HEAD = """# Benchmarks

Written by `python bench.py plot --readme` from the files in [results/](results/); do not edit it. docs/benchmarking.md
says how things are measured. Images/s are medians [least–most of the repeats]; *ratio* is that of the first program of
the same result to this one, measured in turn, with its 95 % interval. Each result has its command, typed in the
repository's root, every repeat, and what was warned of; the command shown is that of the table's first.
The results of `python -m benchmarks.gpu` are in tables in [docs/gpu.md](../docs/gpu.md).
"""
MANY = 1000  # samples; of fewer the name of the data says enough


def read_all(paths: Sequence[Path], say: Callable[[str], None]) -> dict[Path, Result]:
    """The results, by name, numbers in it by their value; `say` gets a line about each file that is none. Those of
    `benchmarks.gpu`, which have a format of their own, are left out."""
    found = {}
    for path in sorted(paths, key=lambda path: [part.zfill(9) for part in re.split(r"(\d+)", str(path))]):
        try:
            if not path.name.startswith("gpu-"):
                found[path] = record.read(path)
        except ValueError as error:
            say(f"skipped {error}")
    return found


def device_of(result: Result) -> str:
    env = result.env
    if result.settings.get("device") == "cuda":
        return str(env.get("gpu"))
    return f"{env.get('cpu')}, {env.get('cores_allowed') or 0:g} cores"


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


def write_front(file: Path, results: Sequence[Result]) -> None:
    """Put the table of the peers where the project's README has its place.

    Raises ValueError where it has none.
    """
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file}: has no place for the table of the peers; put {BEGIN} and {END} there")
    file.write_text(f"{before}{begin}\n{peers_table(results)}\n{end}{after}", encoding="utf-8")


def peers_table(results: Sequence[Result]) -> str:
    """A line a program, a column a set of images: images/s and how many times as fast ours is. The programs are in the
    order of the first column that has them, the fastest first."""

    def size_and_rate(result: Result) -> tuple[int, float]:
        return -result.settings["image_size"], statistics.fmean(one.median for one in result.programs.values())

    measured = sorted((one for one in results if one.benchmark == "peers" and one.programs), key=size_and_rate)
    names = dict.fromkeys(name for result in measured for name, _ in fastest_first(result))
    heads = [f"{Path(one.settings['data']).name}, {one.settings['image_size']} px" for one in measured]
    lines = [_row(["images/s (ours / theirs)", *heads]), _row(["---", *("---:" for _ in heads)])]
    for name in names:
        shown = [name]
        for result in measured:
            ratio = result.ratios.get(f"{OURS} / {name}")
            times = f" ({ratio.median:.2f})" if ratio else ""
            shown.append(f"{shown_rate(result.programs[name].median)}{times}" if name in result.programs else "–")
        lines.append(_row(shown))
    return "\n".join(lines)


def fastest_first(result: Result) -> list[tuple[str, Figures]]:
    return sorted(result.programs.items(), key=lambda program: -program[1].median)


def page(results: dict[Path, Result], pictures: Sequence[Path]) -> str:
    """The whole text: a section a benchmark, then the pictures."""
    parts = [HEAD]
    for benchmark in sorted({result.benchmark for result in results.values()}):
        of_it = {path: result for path, result in results.items() if result.benchmark == benchmark}
        parts += ["\n".join(section(benchmark, of_it)), ""]
    return "\n".join([*parts, *(f"![{one.stem}]({PLOTS.name}/{one.name})\n" for one in pictures)])


def section(benchmark: str, results: dict[Path, Result]) -> list[str]:
    """One benchmark: the command of its first result, a table, remarks."""
    columns = columns_of(list(results.values()))
    head = ["program", "images/s", "ratio", *(COLUMNS[column][0] for column in columns), "result", "device"]
    table, remarks = [_row(head), _row(["---"] * len(head))], []
    for path, result in results.items():
        about = [f"[{setting_of(result.settings)}](results/{path.name})", device_of(result)]
        for name, measured in result.programs.items():
            rates, *more = cells(measured, columns)
            ratios = [ratio_cell(one) for pair, one in result.ratios.items() if pair.endswith(f" / {name}")]
            table.append(_row([name, rates, *(ratios or ["–"]), *more, *about]))
        if "explain" in result.more:
            remarks.append(f"- {path.stem}: bottleneck {result.more['explain']['bottleneck']}")
        for outcome in ("skipped", "failed"):
            whys = result.more.get(outcome, {})
            remarks += [f"- {path.stem}: {name} {outcome}: {why}" for name, why in whys.items()]
    if num_warnings := sum(len(result.warnings) for result in results.values()):
        remarks.append(f"- {num_warnings} warnings: of programs that were not steady, repeats that differ, other load")
    first = next(iter(results.values()))
    return [f"## {benchmark}", "", f"    {first.command}", "", *table, "", *remarks]


def _row(shown: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in shown)} |"
