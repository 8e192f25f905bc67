"""Read a run's directory into a `Run`. Files may be missing, so that a killed run has a report too."""

import json
import math
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.training.figures import number
from penstock.training.metrics import WORST_FILE, read_metrics
from penstock.training.quarantine import QUARANTINE_FILE

Line = dict[str, object]  # a JSON object, unchecked


@dataclass(frozen=True)
class Run:
    """What a run's files contain. A list or dict is empty if the run has no such lines or file.

    steps, evals, epochs: metrics lines in the order of their steps. If a resume repeats a step, its last line counts.
    test, end: the last line of the kind. `end` is empty if the run continued after it.
    settings, defaults: `config.toml` and `defaults.toml`, by dotted key. worst: `worst.json`. bad: the lines of
    `quarantine.jsonl`.
    """

    folder: Path
    name: str
    steps: list[Line]
    evals: list[Line]
    epochs: list[Line]
    test: Line
    end: Line
    settings: dict[str, object]
    defaults: dict[str, object]
    environment: dict[str, object]
    worst: dict[str, object]
    bad: list[Line]

    @property
    def last(self) -> Line:
        """The last validation's line, or {}."""
        return self.evals[-1] if self.evals else {}

    @property
    def best(self) -> Line:
        """The line of the validation with the highest top-1, of the weights or of their moving average, or {}."""
        return max(self.evals, key=lambda line: np.nanmax([0.0, *top1s(line)]), default={})

    @property
    def num_steps(self) -> int:
        """The number of steps done, as the terminal counts them. A step's line has its number from 0."""
        if end := _step(self.end):
            return end
        return max([_step(line) + 1 for line in self.steps[-1:]] + [_step(line) for line in self.evals[-1:]])

    @property
    def images_per_s(self) -> float:
        """The mean over all of training: the terminal's figure if the run has ended, otherwise over the steps so far.
        NaN without steps."""
        if math.isfinite(rate := number(self.end.get("images_per_s"))):
            return rate
        rates = column(self.steps, "images_per_s")
        rates = rates[np.isfinite(rates) & (rates > 0)]
        return float(len(rates) / np.sum(1 / rates)) if len(rates) else float("nan")

    @property
    def median_images_per_s(self) -> float:
        """The median over the steps, which a slow start does not lower. NaN without steps."""
        rates = column(self.steps, "images_per_s")
        return float(np.median(rates[np.isfinite(rates)])) if np.isfinite(rates).any() else float("nan")


def read_run(folder: Path) -> Run:
    """Read a run. Raises ValueError, naming the file, if its metrics have no step and no validation."""
    lines = read_metrics(folder)
    steps, evals, epochs = (_by_step(lines, kind) for kind in ("step", "eval", "epoch"))
    if not steps and not evals:
        raise ValueError(f"{folder}: the metrics have no step and no validation yet, so there is nothing to draw")
    last = {line.get("kind"): line for line in lines}
    went_on = next((line["kind"] for line in reversed(lines) if line["kind"] in ("step", "end")), "") == "step"
    return Run(
        folder=folder,
        name=os.fsencode(folder.resolve().name).decode(errors="replace"),
        steps=steps,
        evals=evals,
        epochs=epochs,
        test=last.get("test", {}),
        end={} if went_on else last.get("end", {}),
        settings=flattened(_toml(folder / "config.toml")),
        defaults=flattened(_toml(folder / "defaults.toml")),
        environment=flattened(_json(folder / "env.json")),
        worst=_json(folder / WORST_FILE),
        bad=_json_lines(folder / QUARANTINE_FILE),
    )


def short_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its directory's name, with as many parents as make the names differ."""
    parts = [Path(os.fsencode(run.folder.resolve()).decode(errors="replace")).parts for run in runs]
    depth = 1
    while depth < max(map(len, parts)) and len({p[-depth:] for p in parts}) < len({*parts}):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def column(lines: list[Line], name: str) -> np.ndarray:
    """Return one field of all lines: (len(lines),) float64, NaN where a line has no such number."""
    return np.array([number(line.get(name)) for line in lines], dtype=float)


def top1s(line: Line) -> list[float]:
    return [value for name in ("top1", "ema_top1") if np.isfinite(value := number(line.get(name)))]


def epoch_of(run: Run, lines: list[Line]) -> np.ndarray | None:
    """Return the time of each line in epochs, with fractions, or None if no epoch has ended yet.

    An epoch's number of samples is its position at its end. An unfinished epoch counts as long as the nearest one.
    """
    ends = [line for line in run.epochs if number(line.get("position")) > 0]
    if not ends:
        return None
    known, sizes = column(ends, "epoch"), column(ends, "position")
    epochs = column(lines, "epoch")
    nearest = np.searchsorted(known, epochs).clip(max=len(known) - 1)
    places: np.ndarray = epochs + column(lines, "position") / sizes[nearest]
    return places


def flattened(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested dicts as one dict with dotted keys."""
    flat: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _step(line: Line) -> int:
    """Return the line's step, or 0 if it has none."""
    step = line.get("step")
    return step if type(step) is int else 0


def _by_step(lines: list[Line], kind: str) -> list[Line]:
    last = {_step(line): line for line in lines if line.get("kind") == kind and type(line.get("step")) is int}
    return [last[step] for step in sorted(last)]


def _toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json_lines(path: Path) -> list[Line]:
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            continue
    return [line for line in lines if isinstance(line, dict)]
