"""The options of `python train.py`, and the recipe that they select. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.recipes import Recipe

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of the command line (`commands/command_line.py`), None if not given.

    overrides: from --set, "section.key=value". resume: "auto", "never" or a path. max_minutes: for the whole run.
    profile: the number of steps of this command to trace.
    """

    data: str | None
    recipe_name: str | None
    overrides: tuple[str, ...]
    run_dir: Path | None
    resume: str
    device: Device
    max_steps: int | None
    max_minutes: float | None
    max_val_images: int | None
    profile: int | None
    deterministic: bool
    no_machine_config: bool
    show_config: bool
    show_schedule: bool


@dataclass(frozen=True)
class Chosen:
    """The recipe of a run. name: for the default run directory. origin, of_machine: text about where the settings come
    from."""

    recipe: Recipe
    name: str
    origin: str
    of_machine: str
