"""A run's directory: `config.toml`, `env.json`, `metrics.jsonl`, `checkpoints/`, `tensorboard/`, reports."""

import fcntl
import itertools
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from training import checkpoint, environment

CONFIG_FILE = "config.toml"
DEFAULTS_FILE = "defaults.toml"  # for the report, which marks what differs
ENVIRONMENT_FILE = "env.json"
LOCK_FILE = "lock"
LOCK_WAIT_S = 30.0


def find_checkpoints(resume: str, run_dir: Path) -> list[Path]:
    """The checkpoints that `--resume` names, the newest first: auto (the run directory's, if any), never, a run
    directory or a file.

    Raises ValueError where it names nothing.
    """
    if resume == "auto":
        return checkpoint.candidates(run_dir)
    if resume == "never":
        return []
    path = Path(resume)
    found = checkpoint.candidates(path) if path.is_dir() else [path] * path.is_file()
    if not found:
        raise ValueError(f"--resume {resume}: no checkpoint there; give auto, never, a run directory or a .pt file")
    return found


def prepare(run_dir: Path, resume_from: Path | None) -> tuple[Path | None, BinaryIO]:
    """Make the directory, and lock it for this process as long as the answered file is open.

    An earlier run there that is not being resumed is moved aside, not overwritten: where to is answered first.

    Raises ValueError where another run still writes there after LOCK_WAIT_S.
    """
    aside = None
    goes_on = resume_from is not None and run_dir.resolve() in resume_from.resolve().parents
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = _lock(run_dir)
    if not goes_on and (run_dir / CONFIG_FILE).exists():
        names = (run_dir.with_name(f"{run_dir.name}.{number}") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        run_dir.rename(aside)
        lock.close()
        run_dir.mkdir()
        lock = _lock(run_dir)
    return aside, lock


def _lock(run_dir: Path) -> BinaryIO:
    """RUN/lock, locked, with this process's name in it. A run that was just killed may take a moment to be gone."""
    stream, deadline = (run_dir / LOCK_FILE).open("ab+"), time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                stream.seek(0)
                who = stream.read(200).decode(errors="replace")
                stream.close()
                raise ValueError(
                    f"{run_dir}: another run writes there ({who}); end it, or give another --run-dir"
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            break
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    stream.flush()
    return stream


def note(run_dir: Path, config_toml: str, defaults_toml: str, dataset: dict[str, Any] | None = None) -> None:
    """Write down the settings of the run that begins or goes on, the environment, and what tells its `dataset`."""
    (run_dir / CONFIG_FILE).write_text(config_toml, encoding="utf-8")
    (run_dir / DEFAULTS_FILE).write_text(defaults_toml, encoding="utf-8")
    facts = environment.describe() | (dataset or {})
    (run_dir / ENVIRONMENT_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
