"""Checkpoints on disk: a dict of tensors and plain values ⇄ `RUN/checkpoints/{last,best}.pt`.

A file is complete or not there: it is written under a temporary name, synced and renamed. Files are read with
`weights_only=True`, so that nothing in them can run. `train.py` decides what is in a state.
"""

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = "penstock-checkpoint-1"


def last_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.pt"


def best_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best.pt"


def newest(run_dir: Path) -> Path | None:
    """The checkpoint to resume a run from; None if the run has not written one."""
    path = last_path(run_dir)
    return path if path.is_file() else None


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and dicts and lists of them) to `path`, replacing it atomically."""
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
    """Make `target` the same file as `source`, atomically and without writing the data again where the disk can.

    A later `save(source)` leaves `target` as it is, since it renames a new file over the old name.
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


def load(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The state that `save` wrote.

    Raises ValueError, naming the file, where it is missing, cut off, or not a checkpoint of this program.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds, by the byte at which a file breaks
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint (cut off or another kind of file): {reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: a torch file, but not a checkpoint of this program ({FORMAT})")
    return content["state"]


def _temporary(path: Path) -> Path:
    """Next to `path`: a rename is atomic only within a file system. One name, so that leftovers do not pile up."""
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
