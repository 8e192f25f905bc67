"""benchmarks/README.md from the results: for each benchmark a table with a line a program, and its plots; and the
table of the peers in the project's README.

`bench.py plot --readme` writes both. Nothing in them is written by hand; a test holds that.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.registry import OURS
from benchmarks.plot import FOLDER, PLOTS, RESULTS, Figure, Result, figures, read

FILE = FOLDER / "README.md"
FRONT = FOLDER.parent / "README.md"
BEGIN, END = "<!-- peers: written by `python bench.py plot --readme` -->", "<!-- end of peers -->"
HEAD = """# Benchmarks

Written by `python bench.py plot --readme` from the files in [results/](results/); do not edit it. docs/benchmarking.md
says how things are measured. Images/s are medians [least–most of the repeats]; *ratio* is that of the table's first
program of the same command to this one, measured in turn, with its 95 % interval. Commands are typed in the
repository's root.
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


def write(file: Path, folder: Path = RESULTS) -> None:
    file.write_text(page(folder), encoding="utf-8")


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
    skipped: list[str] = []
    on_gpus = sorted(folder.glob("gpu-*.json"))  # of `benchmarks.gpu`, in a format of its own
    files = [path for path in sorted(folder.glob("*.json")) if path not in on_gpus]
    results = read(files, skipped.append)
    pictures = figures(results)
    parts = [HEAD]
    for benchmark in sorted({result.content["benchmark"] for result in results}):
        parts.append(section(benchmark, [one for one in results if one.content["benchmark"] == benchmark], pictures))
    if skipped:
        names = _names([path for path in files if _is_in(path, skipped)])
        parts.append(f"Not shown, being of an older format or of scripts in [studies/](studies/): {names}.\n")
    if on_gpus:
        parts.append(f"Of `python -m benchmarks.gpu`, in tables in [docs/gpu.md](../docs/gpu.md): {_names(on_gpus)}.\n")
    return "\n".join(parts)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(f"`{path.name}`" for path in paths)


def _is_in(path: Path, lines: Sequence[str]) -> bool:
    return any(line.startswith(f"skipped {path}:") for line in lines)


def section(benchmark: str, results: Sequence[Result], pictures: Sequence[Figure]) -> str:
    """One benchmark: table, remarks, plots."""
    columns = [key for key in MORE if any(_has(result, key) for result in results)]
    head = ["program", "images/s", "ratio", *(MORE[key][0] for key in columns), "setting", "device", "repeat with"]
    lines = [f"## {benchmark}", "", _row(head), _row(["---"] * len(head))]
    for result in results:
        lines += [_row(cells) for cells in rows(result, columns)]
    remarks = [
        f"- [{result.path.name}](results/{result.path.name}): {line}" for result in results for line in said(result)
    ]
    if remarks:
        lines += ["", *remarks]
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
    about = [setting(content["settings"]), result.device, f"`{content['command']}`"]
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


def setting(settings: Mapping[str, Any]) -> str:
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
