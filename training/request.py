"""What is asked of `python train.py`: its options, and the recipe that they choose. Without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.recipes import Recipe

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options as the command line has them (`commands/command_line.py`); None for what is not given.

    overrides: of --set, "section.key=value". resume: "auto", "never" or a path. max_minutes: of the whole run.
    profile: steps of this command that are traced.
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
    """name: for the run directory's default. origin, of_machine: for people, where the settings come from."""

    recipe: Recipe
    name: str
    origin: str
    of_machine: str
