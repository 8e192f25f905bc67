"""A run's directory: `config.toml`, `env.json`, `metrics.jsonl`, `checkpoints/`, `tensorboard/`, reports.

Nothing in it changes before all is checked that can be wrong: `Claim.take` begins a run there, or goes on with one.
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
    """The `config.toml` of the run that goes on: the one that `--resume` names, else the one in the run directory;
    None where there is none.

    Raises ValueError where `--resume` names nothing, or a checkpoint that lies in no run directory.
    """
    if resume in ("auto", "never"):
        own = run_dir / CONFIG_FILE if run_dir else None
        if own and resume == "auto" and (own.parent / "checkpoints/last.pt").exists() and not own.is_file():
            raise ValueError(f"{own.parent}: has checkpoints and no {CONFIG_FILE}, which would be taken: give --recipe")
        return own if own and own.is_file() else None
    check_resume(resume)
    path = Path(resume)
    for folder in (path, path.parent, path.parent.parent):  # a run, RUN/failed-step-N.pt, RUN/checkpoints/last.pt
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    if path.is_dir() and not (path / "checkpoints").is_dir():
        raise _no_checkpoint(resume)
    raise ValueError(f"--resume {resume}: lies in no run directory, whose {CONFIG_FILE} would be taken: give --recipe")


def check_resume(resume: str) -> None:
    """Raises ValueError where `--resume` names a path that is not there."""
    if resume not in ("auto", "never") and not Path(resume).exists():
        raise _no_checkpoint(resume)


def find_checkpoints(resume: str, run_dir: Path) -> list[Path]:
    """The checkpoints that `--resume` names, the newest first: auto (the run directory's, if any), never, a run
    directory or a file.

    Raises ValueError where it names nothing.
    """
    from penstock.training import checkpoint  # here: it takes torch

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
    return ValueError(f"--resume {resume}: no checkpoint there; give auto, never, a run directory or a .pt file")


def check_place(run_dir: Path, need_bytes: int = 0) -> None:
    """Raises ValueError where no run can be written to `run_dir`, which need not be there, or `need_bytes` not."""
    there = next(path for path in (run_dir, *run_dir.absolute().parents) if os.path.lexists(path))
    for folder in (there, *filter(os.path.lexists, (run_dir / name for name in ("checkpoints", "tensorboard")))):
        if not folder.is_dir():
            raise ValueError(f"{folder}: is no directory; give another --run-dir")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{folder}: cannot be written to; give another --run-dir")
    if (run_dir / "dataset.json").exists():
        raise ValueError(f"{run_dir}: is a packed dataset; give another --run-dir")
    free = shutil.disk_usage(there).free
    if free < need_bytes:
        raise ValueError(
            f"{there}: its disk has {free / 1e6:,.0f} MB free, and a checkpoint takes {need_bytes / 1e6:,.0f} MB at "
            "least; make room, or give another --run-dir"
        )


class Claim:
    """A run directory that a run is about to begin in, or to go on in; a context manager.

    The lock of a run that is there is held from the start, so that nothing changes while all is checked. `take` makes
    the directory this run's, `settle` says that the run has begun; where it ends before, all is put back as it was.
    Disabled (all ranks but 0) it touches nothing.
    """

    def __init__(self, run_dir: Path, enabled: bool = True) -> None:
        """Raises ValueError where another run still writes there after LOCK_WAIT_S."""
        self.run_dir, self.taken = run_dir, False
        self._enabled, self._undo = enabled, ExitStack()
        self._lock = _held(run_dir) if enabled else None

    def take(self, resume_from: Path | None, files: dict[str, str]) -> Path | None:
        """Make the directory, write `files` (name → text) there. An earlier run there that is not being resumed is
        moved aside, not overwritten: where to is answered.

        Raises ValueError where another run has begun there meanwhile.
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
        """From now on what is in the directory stays there, however the run ends."""
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
                f"{self.run_dir}: an earlier run, not moved aside with {inside} in it; give another --run-dir"
            )
        names = (self.run_dir.with_name(f"{self.run_dir.name}.{number}") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        self.run_dir.rename(aside)
        if self._lock:
            self._undo.callback(self._lock.close)  # not yet: it keeps others from the run while it may come back
            self._lock = None
        self._undo.callback(aside.rename, self.run_dir)
        return aside

    def _make_directory(self) -> None:
        """What is in it by the end is this run's own, unless something was there before."""
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
        return ValueError(f"{self.run_dir}: another run has begun there meanwhile; give another --run-dir")

    def _write(self, path: Path, content: bytes) -> None:
        """Whole or not at all."""
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
    """The files that tell of a run's settings, environment, and `dataset` (what tells it): name → text."""
    from penstock.training import environment  # here: it takes torch

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
    with suppress(OSError):  # somebody else has put something there
        folder.rmdir()


def _held(run_dir: Path) -> BinaryIO | None:
    """RUN/lock of a run that is there, locked; nothing is written. A run that was just killed may take a moment to be
    gone, and one that is moved aside takes its lock along."""
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
                        f"{run_dir}: another run writes there ({who}); end it, or give another --run-dir"
                    ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                opened.pop_all()  # a file system without locks
                return stream
        time.sleep(0.1)
    return None
