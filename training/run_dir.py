"""A run's directory: `config.toml`, `env.json`, `metrics.jsonl`, `checkpoints/`, `tensorboard/`, reports."""

import itertools
import json
from pathlib import Path
from typing import Any

from training import checkpoint, environment

CONFIG_FILE = "config.toml"
DEFAULTS_FILE = "defaults.toml"  # for the report, which marks what differs
ENVIRONMENT_FILE = "env.json"


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


def prepare(run_dir: Path, config_toml: str, defaults_toml: str, resume_from: Path | None) -> Path | None:
    """Make the directory and note settings and environment in it.

    An earlier run there that is not being resumed is moved aside, not overwritten: where to is returned.
    """
    aside = None
    goes_on = resume_from is not None and run_dir in resume_from.parents
    if not goes_on and (run_dir / CONFIG_FILE).exists():
        names = (run_dir.with_name(f"{run_dir.name}.{number}") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        run_dir.rename(aside)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG_FILE).write_text(config_toml, encoding="utf-8")
    (run_dir / DEFAULTS_FILE).write_text(defaults_toml, encoding="utf-8")
    facts: dict[str, Any] = environment.describe()
    (run_dir / ENVIRONMENT_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return aside
