"""A benchmark's result: figures, settings and environment. `--json` writes it, `plot` reads it.

{"format": 2, "benchmark": "loader", "command": "python bench.py …", "time": "2030-01-31T12:00:00", "settings": {…},
 "programs": {NAME: {"images_per_s": [one a repeat], "data_wait": […], …}},
 "ratios": {"A / B": {"median": …, "low": …, "high": …, "min": …, "max": …}},
 "warnings": ["…"], "env": environment.describe()}
"""

import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from penstock.benchmarks.measure import Ratio, Sample
from penstock.training import environment

FORMAT = 2
JSON = dict[str, Any]  # a JSON object with keys of the benchmark's own
PARTS = ("benchmark", "command", "time", "settings", "programs", "ratios", "warnings", "env")


@dataclass(frozen=True)
class Figures:
    """The figures of one program. A list has one value per repeat. None means not measured.

    data_wait: share of the time. ahead: steps that the CPU was ahead of a GPU. cpu_s: CPU seconds per image.
    gigabytes_per_s: 10⁹ bytes per second, for copies. images_per_s_of_rank: one list per rank.

    For peers only: images_per_s_of_workers, for each number of workers that was tried; prepare_s, the time to convert a
    folder of JPEGs to the files that the peer reads; size_bytes, the size of the files that it reads.
    """

    images_per_s: list[float]
    data_wait: list[float] | None = None
    ahead: list[float] | None = None
    images_per_s_of_rank: list[list[float]] | None = None
    first_batch_s: float | None = None
    memory_mb: float | None = None
    gigabytes_per_s: list[float] | None = None
    cpu_s: float | None = None
    version: str | None = None
    workers: int | None = None
    images_per_s_of_workers: dict[str, float] | None = None
    prepare_s: float | None = None
    size_bytes: int | None = None

    @property
    def median(self) -> float:
        """Median images/s."""
        return statistics.median(self.images_per_s)


@dataclass(frozen=True)
class Result:
    """One measurement. more: the benchmark's own parts of the file, beside those that all have."""

    benchmark: str
    settings: JSON
    programs: dict[str, Figures]
    ratios: dict[str, Ratio]
    warnings: list[str]
    command: str
    time: str
    env: environment.Environment
    more: JSON = field(default_factory=dict)


def build(
    benchmark: str,
    settings: Mapping[str, object],
    samples: Mapping[str, Sequence[Sample]],
    ratios: Mapping[str, Ratio],
    warnings: Sequence[str],
    more: Mapping[str, JSON] | None = None,
) -> Result:
    """Make the result of a measurement, with the current time and environment. more: further `Figures` by program."""
    programs = {
        name: Figures(
            images_per_s=[one.images_per_s for one in taken],
            data_wait=[one.data_wait for one in taken],
            ahead=[one.ahead for one in taken] if any(one.ahead for one in taken) else None,
            **(more or {}).get(name, {}),
        )
        for name, taken in samples.items()
    }
    return Result(
        benchmark, dict(settings), programs, dict(ratios), list(warnings),
        command=command(), time=time.strftime("%Y-%m-%dT%H:%M:%S"), env=environment.describe(),
    )  # fmt: skip


def command() -> str:
    """Return the command line of this process, to be typed again in the repository."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = f"torchrun --nproc-per-node {ranks}" if ranks else "python"
    return f"{launcher} {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"


def require_writable(*paths: Path | None) -> None:
    """Raise ValueError if one of the files or folders cannot be written. Called before minutes of measuring."""
    for path in filter(None, paths):
        there = next((one for one in (path.absolute(), *path.absolute().parents) if one.exists()), path)
        if not os.access(there, os.W_OK) or (there != path.absolute() and not there.is_dir()):
            raise ValueError(f"{path}: cannot be written. Give another path.")


def keep(result: Result, json_file: Path | None, out: Path | None) -> None:
    """Write the result where the options say: to a file, and to a folder under a name with its time."""
    if json_file:
        write(json_file, result)
    if out:
        file = out / f"{result.benchmark}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        write(file, result)
        click.echo(f"  result: {file}")


def write(path: Path, result: Result) -> None:
    """Write a result as JSON. Raises ValueError with the file's name if it cannot be written."""
    content = {"format": FORMAT} | {part: getattr(result, part) for part in PARTS} | result.more
    content["programs"] = {
        name: {key: value for key, value in asdict(figures).items() if value is not None}
        for name, figures in result.programs.items()
    }
    content["ratios"] = {name: ratio._asdict() for name, ratio in result.ratios.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a byte of a file name that is not UTF-8 becomes "\\udcff", which is valid JSON
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None


def read(path: Path) -> Result:
    """Read a result. Raises ValueError with the file's name if it is not a result, or has a different format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Give a file that bench.py --json wrote.") from None
    try:
        if (number := content.pop("format")) != FORMAT:
            raise ValueError(f"{path}: has format {number!r}, but this version reads format {FORMAT}. Measure again.")
        parts = {part: content.pop(part) for part in PARTS}
        parts["programs"] = {name: Figures(**figures) for name, figures in parts["programs"].items()}
        parts["ratios"] = {name: Ratio(**ratio) for name, ratio in parts["ratios"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of bench.py ({error}). Give a file that --json wrote.") from None
    for name, figures in parts["programs"].items():
        rates = figures.images_per_s
        if not isinstance(rates, list) or not rates or not all(isinstance(r, int | float) and r > 0 for r in rates):
            raise ValueError(f"{path}: images_per_s of {name!r} is not a list of rates. Measure again.")
    return Result(**parts, more=content)
