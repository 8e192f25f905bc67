"""Write a run's figures: dicts to `RUN/metrics.jsonl` and the trackers, pictures to the trackers."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, Unpack

import numpy as np

from penstock.training.records import Ending, EpochLine, Rates, Scores, StepLine
from penstock.training.sheet import Images, draw_sheet
from penstock.training.trackers import TensorBoard, WeightsAndBiases

METRICS_FILE, WORST_FILE = "metrics.jsonl", "worst.json"
_NOT_PLOTTED = ("step", "epoch", "position")


class MetricsLog:
    """Appends to `RUN/metrics.jsonl`, one JSON object a line with `kind` first, and to TensorBoard and W&B.

    JSON has no NaN and no infinities, so they are written as null. If disabled, as on all ranks except 0, it does
    nothing.
    """

    def __init__(self, run_dir: Path, enabled: bool = True, *, wandb: str = "") -> None:
        """`wandb`: a Weights & Biases project, or "". Raises ValueError if the package or the login is missing."""
        self._enabled = enabled
        self._trackers: list[TensorBoard | WeightsAndBiases] = []
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._trackers = [TensorBoard(run_dir), *([WeightsAndBiases(run_dir, wandb)] if wandb else [])]
            self._file = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
            if self._file.tell() and not _ends_with_newline(run_dir / METRICS_FILE):
                self._file.write("\n")  # a killed run may have left a partial last line

    def step(self, **line: Unpack[StepLine]) -> None:
        """Log one training step: a line from `StepLog.take`."""
        self.write("step", **line)
        self._plot("train", line["step"], line)

    def epoch(self, **line: Unpack[EpochLine]) -> None:
        """Log the end of an epoch."""
        self.write("epoch", **line)

    def eval(
        self, kind: Literal["eval", "test"] = "eval", *, step: int, epoch: int, position: int, **scores: Unpack[Scores]
    ) -> None:
        """Log one validation, or the scores of the test split at the end."""
        self.write(kind, step=step, epoch=epoch, position=position, **scores)
        self._plot("test" if kind == "test" else "val", step, scores)

    def end(self, scores: Scores | None, rates: Rates, ending: Ending, *, epoch: int, step: int, position: int) -> None:
        """Log the run's end, with the last validation's scores."""
        place = {"epoch": epoch, "step": step, "position": position}
        self.write("end", **{**place, **(scores or {}), **rates, **ending})

    def images(self, tag: str, images: Images, captions: Sequence[str], step: int) -> None:
        """Send a sheet of images with captions (`draw_sheet`) to TensorBoard and W&B."""
        if self._enabled and len(images) > 0:
            self.picture(tag, draw_sheet(images, captions), step)

    def picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Send one picture, (H, W, 3) uint8, to TensorBoard and W&B."""
        for tracker in self._trackers:
            tracker.image(tag, picture, step)

    def write(self, kind: str, **fields: object) -> None:
        """Write one line of any kind, and flush it to the operating system."""
        if not self._enabled:
            return
        line = {"kind": kind} | {name: _json_value(value) for name, value in fields.items()}
        self._file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Write all lines to the disk itself, like a checkpoint, so that a power cut does not lose them."""
        if self._enabled:
            os.fsync(self._file.fileno())

    def _plot(self, group: str, step: int, fields: Mapping[str, object]) -> None:
        values = {
            f"{group}/{name}": value
            for name, value in fields.items()
            if name not in _NOT_PLOTTED and isinstance(value, int | float)
        }
        for tracker in self._trackers:
            tracker.scalars(values, step)

    def close(self, failed: bool = False) -> None:
        if self._enabled:
            self._file.close()
        for tracker in self._trackers:
            tracker.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


def read_metrics(run_dir: Path) -> list[dict[str, object]]:
    """Read the lines of `RUN/metrics.jsonl`, with null as NaN. Truncated lines and lines without a kind are skipped.

    Raises ValueError, naming the file, if it does not exist.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {run_dir} is not a run directory")
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("kind"), str):
            lines.append({name: math.nan if value is None else value for name, value in line.items()})
    return lines


def _json_value(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
