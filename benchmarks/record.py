"""A result: what was measured, how, and where → a dict, written as JSON.

{"format": 2, "benchmark": "loader", "command": "python bench.py …", "time": "2030-01-31T12:00:00", "settings": {…},
 "programs": {NAME: {"images_per_s": [one a repeat], "data_wait": […], …}},
 "ratios": {"A / B": {"median": …, "low": …, "high": …, "min": …, "max": …}},
 "warnings": ["…"], "env": environment.describe()}
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Ratio, Sample
from training import environment

FORMAT = 2
PARTS = {"benchmark": str, "command": str, "settings": dict, "programs": dict, "ratios": dict, "warnings": list,
         "env": dict}  # fmt: skip
DEVICE = {"CPU": "cpu", "cores allowed": "cores_allowed", "GPU": "gpu"}  # what must be the same to be compared


def build(
    benchmark: str,
    settings: Mapping[str, Any],
    samples: Mapping[str, Sequence[Sample]],
    ratios: Mapping[str, Ratio],
    warnings: Sequence[str],
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The result of one measurement, now and here. `more`: further lists or numbers of a program, by its name."""
    programs = {
        name: {
            "images_per_s": [one.images_per_s for one in taken],
            "data_wait": [one.data_wait for one in taken],
            **({"ahead": [one.ahead for one in taken]} if any(one.ahead for one in taken) else {}),
            **(more or {}).get(name, {}),
        }
        for name, taken in samples.items()
    }
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "command": command(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "settings": dict(settings),
        "programs": programs,
        "ratios": {name: ratio._asdict() for name, ratio in ratios.items()},
        "warnings": list(warnings),
        "env": environment.describe(),
    }


def command() -> str:
    """The command line that this process was started by, to be typed again in the repository."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = f"torchrun --nproc-per-node {ranks}" if ranks else "python"
    return f"{launcher} {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"


def require_writable(*paths: Path | None) -> None:
    """Before minutes of measuring: raises ValueError where one of the files or folders could not be written after."""
    for path in filter(None, paths):
        there = next((one for one in (path.absolute(), *path.absolute().parents) if one.exists()), path)
        if not os.access(there, os.W_OK) or (there != path.absolute() and not there.is_dir()):
            raise ValueError(f"{path}: cannot be written; name another place for it")


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the file, where it cannot be written."""
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a byte of a file name that is no UTF-8 becomes "\\udcff", which is JSON
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError, naming the file, where it is no result, or one of another format."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); give a file that bench.py --json wrote") from None
    if not isinstance(result, dict) or "format" not in result:
        raise ValueError(f"{path}: not a result of bench.py; give a file that --json wrote")
    if result["format"] != FORMAT:
        raise ValueError(f"{path}: has format {result['format']!r}, this is for {FORMAT}; measure again")
    for part, kind in PARTS.items():
        if not isinstance(result.get(part), kind):
            raise ValueError(f"{path}: {part!r} is missing or not a {kind.__name__}; measure again")
    for name, figures in result["programs"].items():
        rates = figures.get("images_per_s") if isinstance(figures, dict) else None
        if not isinstance(rates, list) or not rates or not all(isinstance(r, int | float) and r > 0 for r in rates):
            raise ValueError(f"{path}: images_per_s of {name!r} is no list of rates; measure again")
    return result


def same_device(a: Mapping[str, Any], b: Mapping[str, Any], force: bool = False) -> None:
    """Raises ValueError where two results come from different devices, naming both, unless `force`."""
    differences = [
        f"{what} {a['env'].get(key)} and {b['env'].get(key)}"
        for what, key in DEVICE.items()
        if a["env"].get(key) != b["env"].get(key)
    ]
    if differences and not force:
        raise ValueError(f"the results come from different devices ({'; '.join(differences)}); --force compares them")
