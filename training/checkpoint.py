"""Checkpoints on disk: a dict of tensors and plain values ⇄ `RUN/checkpoints/{step-N,last,best}.pt`.

A file is either complete or absent: it is written under a temporary name, synced and renamed. `last.pt` and `best.pt`
are additional names of one of the `step-N.pt`. Files are read with `weights_only=True`, so no code in them can run.
`training/learner.py` captures and restores the state.
"""

import os
import threading
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypedDict, cast

import torch
from torch import Tensor

from penstock.training.clock import Mark, mark
from penstock.training.refusal import first_line
from penstock.training.snapshot import at_rest, snapshot

FORMAT = "penstock-checkpoint-1"
CPU = torch.device("cpu")


class Captured(TypedDict):
    """The state that steps change. at: `RunState`'s fields. ema: the averaged weights, if any. scaler: for fp16."""

    at: dict[str, Any]
    net: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, object]
    scaler: dict[str, object]


class DatasetFacts(TypedDict):
    """What identifies a dataset: its fingerprint, and the number of images in each split."""

    dataset: str
    splits: dict[str, int]


class About(DatasetFacts):
    """The facts that stay the same in a run. recipe: TOML. oriented: whether packing rotated images by their EXIF
    orientation. classes: `ClassInfo`'s fields, in the order of the labels."""

    recipe: str
    oriented: bool
    classes: list[dict[str, str]]


class FailedStep(TypedDict):
    """The failed step of a `failed-step-N.pt`. start: the position at which its global batch begins. sample_ids: the
    ids of the global batch. why: the reason in words. batch_size: of one rank's batch."""

    step: int
    epoch: int
    start: int
    why: str
    sample_ids: list[int]
    world_size: int
    batch_size: int


class CheckpointState(Captured, About):
    """A checkpoint's content. Use `require`: one from another program or an earlier version may lack keys."""


class FailedState(CheckpointState):
    """The content of a `failed-step-N.pt`: the state before the step."""

    failed: FailedStep


def require(state: CheckpointState, keys: Iterable[str], path: Path) -> None:
    """Raise ValueError, naming the file, if the state lacks one of `keys`."""
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"{path}: this checkpoint has no {', '.join(missing)}. Give one that train.py wrote")


def last_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.pt"


def best_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best.pt"


def step_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08}.pt"


def candidates(run_dir: Path) -> list[Path]:
    """The checkpoints that a run can be resumed from, the newest first."""
    paths = last_path(run_dir), *reversed(_by_age(run_dir))
    return [path for path in paths if path.is_file()]


def _by_age(run_dir: Path) -> list[Path]:
    """The `step-N.pt`, oldest first. They are sorted by time, since resuming from an earlier one repeats steps."""
    return sorted((run_dir / "checkpoints").glob("step-*.pt"), key=lambda path: path.stat().st_mtime_ns)


class Writer:
    """Writes checkpoints in its own thread while training continues. A context manager.

    `save` copies the state, so a file holds the state of exactly one step. If a write fails, the run prints a line and
    continues; the previous checkpoint is still there. Leaving the context waits for the last write.
    """

    def __init__(
        self,
        run_dir: Path,
        keep: int,
        on_error: Callable[[str], None],
        enabled: bool = True,
        device: torch.device = CPU,
    ) -> None:
        """`keep`: how many of the newest to keep besides the best. `device`: where the tensors are. If disabled, as on
        all ranks except 0, it does nothing."""
        self._run_dir, self._keep, self._on_error, self._device = run_dir, keep, on_error, device
        self._enabled = enabled
        self._thread: threading.Thread | None = None
        self.failed: str | None = None  # why the newest checkpoint could not be written
        if enabled:
            for leftover in (run_dir / "checkpoints").glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def save(self, step: int, state: CheckpointState, is_best: bool = False) -> None:
        """Write `state` as the checkpoint of `step`, in the background."""
        if not self._enabled:
            return
        self.wait()
        copied, ready = snapshot(state), mark(self._device)
        self._thread = threading.Thread(target=self._write, args=(step, copied, ready, is_best), name="checkpoint")
        self._thread.start()

    def _write(self, step: int, state: CheckpointState, ready: Mark, is_best: bool) -> None:
        path = step_path(self._run_dir, step)
        try:
            save(path, at_rest(state, ready))
            duplicate(path, last_path(self._run_dir))
            if is_best:
                duplicate(path, best_path(self._run_dir))
            for old in _by_age(self._run_dir)[: -self._keep]:
                old.unlink(missing_ok=True)
            self.failed = None
        except Exception as error:  # torch reports a full disk as a RuntimeError
            self.failed = f"{path}: cannot write this checkpoint ({first_line(error)})"
            self._on_error(self.failed)

    def wait(self) -> None:
        """Wait until the last `save` is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def save(path: Path, state: CheckpointState) -> None:
    """Write `state` to `path`, replacing it atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def duplicate(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically, and without copying the data if the disk allows.

    A later `save(source)` does not change `target`, since it renames a new file over the old name.
    """
    temporary = _temporary(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            _copy(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(target.parent)


def load_newest(
    paths: list[Path], on_unreadable: Callable[[str], None], map_location: str | torch.device = "cpu"
) -> tuple[Path, CheckpointState]:
    """Return the first of `paths` that can be read, and its state. Calls `on_unreadable` for each that cannot.

    Raises ValueError if none can be read.
    """
    for path in paths:
        try:
            return path, load(path, map_location)
        except ValueError as error:
            on_unreadable(str(error))
    raise ValueError(
        f"{paths[0]}: neither this nor an earlier checkpoint can be read. To start from scratch, give --resume never"
    )


def load(path: Path, map_location: str | torch.device = "cpu") -> CheckpointState:
    """Read the state that `save` wrote.

    Raises ValueError, naming the file, if it is missing, truncated, or not a checkpoint of this program.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        _check_archive(path)
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many types, depending on where a file is damaged
        if path.suffix == ".safetensors":
            raise ValueError(f"{path}: an export, not a checkpoint. Give the run that it was exported from") from None
        what = "truncated, or another kind of file"
        raise ValueError(f"{path}: not a readable checkpoint ({what}): {first_line(error)}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: a torch file, but not a checkpoint of this program ({FORMAT})")
    if not isinstance(state := content.get("state"), dict):
        raise ValueError(f"{path}: not a readable checkpoint (it has no state)")
    return cast(CheckpointState, state)


def _check_archive(path: Path) -> None:
    """Raise an error if torch would read the file as one of its old formats, or unpack more than it contains. torch
    trusts any length that such a file states, and allocates that much memory."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its records are longer than the file")


def _temporary(path: Path) -> Path:
    """A temporary name beside `path`, since a rename is atomic only within a file system. It is always the same, so
    leftovers do not accumulate."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    return temporary


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 24):
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
