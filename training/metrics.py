"""Where a run's figures go: dicts to `RUN/metrics.jsonl` and the trackers, pictures to the trackers."""

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

    NaN and infinities have no JSON; they are written as null. Disabled (all ranks but 0), it does nothing.
    """

    def __init__(self, run_dir: Path, enabled: bool = True, *, wandb: str = "") -> None:
        """`wandb`: a Weights & Biases project, or "". Raises ValueError where the package or the login is missing."""
        self._enabled = enabled
        self._trackers: list[TensorBoard | WeightsAndBiases] = []
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._trackers = [TensorBoard(run_dir), *([WeightsAndBiases(run_dir, wandb)] if wandb else [])]
            self._file = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
            if self._file.tell() and not _ends_with_newline(run_dir / METRICS_FILE):
                self._file.write("\n")  # a killed run's last line: keep it from swallowing the next one

    def step(self, **line: Unpack[StepLine]) -> None:
        """One training step: what `StepLog.take` gives."""
        self.write("step", **line)
        self._plot("train", line["step"], line)

    def epoch(self, **line: Unpack[EpochLine]) -> None:
        """An epoch's end."""
        self.write("epoch", **line)

    def eval(
        self, kind: Literal["eval", "test"] = "eval", *, step: int, epoch: int, position: int, **scores: Unpack[Scores]
    ) -> None:
        """One validation, or the test split's at the end."""
        self.write(kind, step=step, epoch=epoch, position=position, **scores)
        self._plot("test" if kind == "test" else "val", step, scores)

    def end(self, scores: Scores | None, rates: Rates, ending: Ending, *, epoch: int, step: int, position: int) -> None:
        """The run's end, with the last validation's scores."""
        place = {"epoch": epoch, "step": step, "position": position}
        self.write("end", **{**place, **(scores or {}), **rates, **ending})

    def images(self, tag: str, images: Images, captions: Sequence[str], step: int) -> None:
        """A sheet of images with captions, as `draw_sheet` has them: not a line, but for TensorBoard and W&B."""
        if self._enabled and len(images) > 0:
            self.picture(tag, draw_sheet(images, captions), step)

    def picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """One picture, (H, W, 3) uint8, for TensorBoard and W&B."""
        for tracker in self._trackers:
            tracker.image(tag, picture, step)

    def write(self, kind: str, **fields: object) -> None:
        """One line of any kind, on disk when this returns (as far as the operating system is concerned)."""
        if not self._enabled:
            return
        line = {"kind": kind} | {name: _json_value(value) for name, value in fields.items()}
        self._file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Have all lines on the disk itself, as a checkpoint is: or a power cut could leave less of them."""
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
    """The lines of `RUN/metrics.jsonl`, null as NaN; what has no kind, as where a kill cut it off, is left out.

    Raises ValueError, naming the file, where there is none.
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
