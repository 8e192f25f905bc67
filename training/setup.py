"""What a run is built from: all that the command line and the ranks have settled before torch builds anything."""

from dataclasses import dataclass
from pathlib import Path

from penstock.recipes import Recipe
from penstock.shards.format import ShardSet
from penstock.training.distributed import StopFlag, World
from penstock.training.run_dir import Claim
from penstock.training.watchdog import Watchdog


@dataclass(frozen=True, kw_only=True)
class Setup:
    """resume_from: checkpoints, the newest first; the run goes on from the first that can be read. began: when the
    command did, by `time.perf_counter`. max_steps, max_minutes: of the whole run, None for no limit. max_val_images:
    images of a split that are scored, 0 for all. profile: steps that are traced."""

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
