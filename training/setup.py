"""The inputs of a run: everything that the command line and the ranks settle before torch builds anything."""

from dataclasses import dataclass
from pathlib import Path

from penstock.recipes import Recipe
from penstock.shards.format import ShardSet
from penstock.training.distributed import StopFlag, World
from penstock.training.run_dir import Claim
from penstock.training.watchdog import Watchdog


@dataclass(frozen=True, kw_only=True)
class Setup:
    """resume_from: checkpoints, newest first; the run resumes from the first that can be read. began: when the command
    began, by `time.perf_counter`. max_steps, max_minutes: limits for the whole run, None for no limit. max_val_images:
    the number of images to score in a split, 0 for all. profile: the number of steps to trace."""

    recipe: Recipe
    dataset: ShardSet
    world: World
    claim: Claim
    resume_from: list[Path]
    stop: StopFlag
    watch: Watchdog
    began: float
    max_steps: int | None = None
    max_minutes: float | None = None
    max_val_images: int = 0
    profile: int = 0
