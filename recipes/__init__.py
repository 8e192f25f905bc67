"""The settings of a run as one frozen tree: what a recipe's TOML file may hold, section by section.

Each section is declared beside the code that reads it; this module only joins them. `recipes.config.load_config`
fills the tree from defaults, a recipe file and `--set`.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from model.config import EmaConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from model.schedule import warmup_of
from pipeline.augment import AugmentConfig
from pipeline.config import DataConfig
from recipes.phases import PhasesConfig

FOLDER = Path(__file__).parent
DEMO_DATA = "data/demo"  # what the demo recipe names; made where it is missing


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How `train.py` loops.

    epochs: passes over the training split.
    global_batch_size: samples of one optimizer step over all ranks; a rank's batch is global_batch_size /
        (ranks × accumulation) and must come out whole.
    accumulation: batches a rank runs through before it steps.
    precision: "bf16" and "fp16" run the network under autocast, fp16 with a loss scaler; "auto" is bf16 where the
        device has instructions for it, else fp16 on a GPU and fp32 on a CPU.
    clip_grad_norm: the most that the gradient's 2-norm over all parameters may be; longer ones are scaled; 0 for none.
    seed: of the weights, the order and the augmentation.
    val_flip: score each validation image as the mean of the logits of itself and of its mirror image.
    eval_every: epochs between validations; the last epoch is always validated.
    checkpoint_every: steps between checkpoints, besides the one at each epoch's end; 0 for none.
    keep_checkpoints: how many of the newest are kept, besides the best.
    log_every: steps between log lines on the screen; it is also how often the losses are fetched from the device.
    timeout_s: seconds without progress after which a run ends and names the rank and the stage that hang.
    wandb: a Weights & Biases project to log to, besides TensorBoard; empty for none.
    """

    epochs: int = 90
    global_batch_size: int = 256
    accumulation: int = 1
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    clip_grad_norm: float = 0.0
    seed: int = 0
    val_flip: bool = False
    eval_every: int = 1
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 20
    timeout_s: int = 600
    wandb: str = ""

    def __post_init__(self) -> None:
        at_least_1 = "epochs", "global_batch_size", "accumulation", "eval_every", "log_every", "keep_checkpoints"
        for name in (*at_least_1, "timeout_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("seed", "checkpoint_every", "clip_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one run. What a setting is by default, where that depends on others, is filled in."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        warmup = warmup_of(self.schedule, self.train.epochs)  # raises where it is too long
        object.__setattr__(self, "schedule", replace(self.schedule, warmup_epochs=warmup))


def recipe_at(recipe: Recipe, epoch: int) -> Recipe:
    """The recipe in force in `epoch` (from 0): one like any other, whose own `phases` are empty."""
    phases = recipe.phases
    phase = bisect_right(phases.start_epochs, epoch) - 1
    recipe = replace(recipe, phases=PhasesConfig())
    if phases.image_size:
        recipe = replace(recipe, data=replace(recipe.data, image_size=phases.image_size[phase]))
    if phases.global_batch_size:
        recipe = replace(recipe, train=replace(recipe.train, global_batch_size=phases.global_batch_size[phase]))
    if phases.augment_strength:
        recipe = replace(recipe, augment=recipe.augment.scaled(phases.augment_strength[phase]))
    return recipe


def recipe_file(name: str) -> Path:
    """The file of a recipe given by name, or by path. Raises ValueError naming the recipes there are."""
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    known = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
    if name in known:
        return known[name]
    if path.suffix == ".toml":
        raise ValueError(f"recipe {name}: no such file")
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"recipe {name!r}: {hint}there are {', '.join(known)}; or give a .toml file")
