"""A run's directory: `config.toml`, `env.json`, `metrics.jsonl`, `checkpoints/`, `tensorboard/`, reports.

Nothing in it changes until everything that can be wrong is checked. `Claim.take` then begins or continues a run there.
"""

import errno
import fcntl
import itertools
import json
import os
import shutil
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

if TYPE_CHECKING:
    from penstock.training.checkpoint import DatasetFacts

CONFIG_FILE = "config.toml"
DEFAULTS_FILE = "defaults.toml"  # for the report, which marks what differs
ENVIRONMENT_FILE = "env.json"
LOCK_FILE = "lock"
LOCK_WAIT_S = 30.0


def config_of_run(resume: str, run_dir: Path | None) -> Path | None:
    """The `config.toml` of the run to resume: the run that `--resume` names, otherwise the one in the run directory.
    None if there is none.

    Raises ValueError if `--resume` names nothing that exists, or a checkpoint outside a run directory.
    """
    if resume in ("auto", "never"):
        own = run_dir / CONFIG_FILE if run_dir else None
        if own and resume == "auto" and (own.parent / "checkpoints/last.pt").exists() and not own.is_file():
            raise ValueError(f"{own.parent}: has checkpoints but no {CONFIG_FILE} with its settings. Give --recipe")
        return own if own and own.is_file() else None
    check_resume(resume)
    path = Path(resume)
    for folder in (path, path.parent, path.parent.parent):  # a run, RUN/failed-step-N.pt, RUN/checkpoints/last.pt
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    if path.is_dir() and not (path / "checkpoints").is_dir():
        raise _no_checkpoint(resume)
    raise ValueError(
        f"--resume {resume}: is not in a run directory, so there is no {CONFIG_FILE} with its settings. Give --recipe"
    )


def check_resume(resume: str) -> None:
    """Raise ValueError if `--resume` names a path that does not exist."""
    if resume not in ("auto", "never") and not Path(resume).exists():
        raise _no_checkpoint(resume)


def find_checkpoints(resume: str, run_dir: Path) -> list[Path]:
    """The checkpoints that `--resume` selects, newest first: auto (those of the run directory, if any), never, a run
    directory or a file.

    Raises ValueError if a path has no checkpoint.
    """
    from penstock.training import checkpoint  # imported here because it needs torch

    if resume == "auto":
        return checkpoint.candidates(run_dir)
    if resume == "never":
        return []
    path = Path(resume)
    found = [path] if path.is_file() else checkpoint.candidates(path)
    if not found:
        raise _no_checkpoint(resume)
    return found


def _no_checkpoint(resume: str) -> ValueError:
    return ValueError(f"--resume {resume}: no checkpoint there. Give auto, never, a run directory or a .pt file")


def check_place(run_dir: Path, need_bytes: int = 0) -> None:
    """Raise ValueError if `run_dir`, which need not exist, cannot be written to, or has no space for `need_bytes`."""
    there = next(path for path in (run_dir, *run_dir.absolute().parents) if os.path.lexists(path))
    for folder in (there, *filter(os.path.lexists, (run_dir / name for name in ("checkpoints", "tensorboard")))):
        if not folder.is_dir():
            raise ValueError(f"{folder}: is not a directory. Give another --run-dir")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{folder}: cannot be written to. Give another --run-dir")
    if (run_dir / "dataset.json").exists():
        raise ValueError(f"{run_dir}: is a packed dataset. Give another --run-dir")
    free = shutil.disk_usage(there).free
    if free < need_bytes:
        raise ValueError(
            f"{there}: the disk has {free / 1e6:,.0f} MB free, but a checkpoint needs at least "
            f"{need_bytes / 1e6:,.0f} MB. Free some space, or give another --run-dir"
        )


class Claim:
    """A run directory in which a run is about to begin or continue. A context manager.

    If a run exists there, its lock is held from the start, so nothing changes during the checks. `take` takes the
    directory for this run. `settle` marks the run as begun. If the context ends before that, everything is restored. If
    disabled, as on all ranks except 0, it touches nothing.
    """

    def __init__(self, run_dir: Path, enabled: bool = True) -> None:
        """Raises ValueError if another run is still writing there after LOCK_WAIT_S."""
        self.run_dir, self.taken = run_dir, False
        self._enabled, self._undo = enabled, ExitStack()
        self._lock = _held(run_dir) if enabled else None

    def take(self, resume_from: Path | None, files: dict[str, str]) -> Path | None:
        """Make the directory, and write `files` (name → text) into it. An earlier run that is not resumed is moved
        aside, not overwritten. Return its new path, or None.

        Raises ValueError if another run has started there in the meantime.
        """
        self.taken = True
        if not self._enabled:
            return None
        if self._lock is None and (self.run_dir / LOCK_FILE).exists():
            raise self._came_later()
        goes_on = resume_from is not None and self.run_dir.resolve() in resume_from.resolve().parents
        aside = None if goes_on or not (self.run_dir / CONFIG_FILE).exists() else self._move_aside()
        self._make_directory()
        if self._lock is None:
            self._lock = self._new_lock()
        self._undo.callback(_overwrite, self._lock, self._lock.read())
        _overwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        for name, text in files.items():
            self._write(self.run_dir / name, text.encode())
        return aside

    def settle(self) -> None:
        """Keep everything in the directory from now on, however the run ends."""
        self._undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.settle()
        try:
            self._undo.close()
        finally:
            if self._lock:
                self._lock.close()

    def _move_aside(self) -> Path:
        here, other = Path.cwd(), next(self.run_dir.glob(f"*/{CONFIG_FILE}"), None)
        if self.run_dir.resolve() in (here, *here.parents) or other:
            inside = other.parent if other else here
            raise ValueError(
                f"{self.run_dir}: has an earlier run, which is not moved aside because {inside} is in it. "
                "Give another --run-dir"
            )
        names = (self.run_dir.with_name(f"{self.run_dir.name}.{number}") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        self.run_dir.rename(aside)
        if self._lock:
            self._undo.callback(self._lock.close)  # keep the lock for now: the run may be moved back
            self._lock = None
        self._undo.callback(aside.rename, self.run_dir)
        return aside

    def _make_directory(self) -> None:
        """Make the directory. If it was new or empty, everything in it is removed if the run does not begin."""
        for path in reversed([path for path in self.run_dir.parents if not path.exists()]):
            path.mkdir(exist_ok=True)
            self._undo.callback(_remove_empty, path)
        if not self.run_dir.exists():
            self.run_dir.mkdir()
            self._undo.callback(shutil.rmtree, self.run_dir)
        elif not any(self.run_dir.iterdir()):
            self._undo.callback(_clear, self.run_dir)

    def _new_lock(self) -> BinaryIO:
        path = self.run_dir / LOCK_FILE
        try:
            stream = path.open("xb+")
        except FileExistsError:
            raise self._came_later() from None
        self._undo.callback(path.unlink, missing_ok=True)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stream

    def _came_later(self) -> ValueError:
        return ValueError(f"{self.run_dir}: another run has started there in the meantime. Give another --run-dir")

    def _write(self, path: Path, content: bytes) -> None:
        """Write the file atomically."""
        earlier = path.read_bytes() if path.exists() else None
        if earlier is None:
            self._undo.callback(path.unlink, missing_ok=True)
        else:
            self._undo.callback(path.write_bytes, earlier)
        temporary = path.with_name(f".{path.name}.tmp")
        self._undo.callback(temporary.unlink, missing_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)


def notes(config_toml: str, defaults_toml: str, dataset: "DatasetFacts") -> dict[str, str]:
    """The files with a run's settings and environment, and the facts that identify its `dataset`: name → text."""
    from penstock.training import environment  # imported here because it needs torch

    facts = json.dumps({**environment.describe(), **dataset}, indent=1) + "\n"
    return {CONFIG_FILE: config_toml, DEFAULTS_FILE: defaults_toml, ENVIRONMENT_FILE: facts}


def _overwrite(stream: BinaryIO, content: bytes) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(content)
    stream.flush()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # the folder is not empty any more
        folder.rmdir()


def _held(run_dir: Path) -> BinaryIO | None:
    """Lock RUN/lock of an existing run, without writing anything. A run that was just killed may take a moment to end,
    and a run that is moved aside keeps its lock."""
    path, deadline = run_dir / LOCK_FILE, time.monotonic() + LOCK_WAIT_S
    while path.exists():
        with ExitStack() as opened:
            try:
                stream = opened.enter_context(path.open("rb+"))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    opened.pop_all()
                    return stream
            except FileNotFoundError:
                continue
            except BlockingIOError:
                if time.monotonic() > deadline:
                    who = stream.read(200).decode(errors="replace")
                    raise ValueError(
                        f"{run_dir}: another run is writing there ({who}). Stop it, or give another --run-dir"
                    ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                opened.pop_all()  # a file system without locks
                return stream
        time.sleep(0.1)
    return None
