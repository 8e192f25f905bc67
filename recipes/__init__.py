"""`Recipe`: all settings of a run as one frozen tree, with a section for each table of a recipe's TOML file.

Each section is declared beside the code that reads it, and this module joins them. `recipes.config.load_config`
fills the tree from the defaults, a recipe file and `--set`.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from penstock.model.config import EmaConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from penstock.model.schedule import warmup_of
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.config import DataConfig
from penstock.recipes.phases import PhasesConfig
from penstock.settings import Setting, check, setting, settings_of

FOLDER = Path(__file__).parent
DEMO_DATA = "data/demo"  # the demo recipe's dataset; made if it is missing


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop: length, batch, precision, validation, checkpoints and logs."""

    epochs: int = setting(90, "Passes over the training split.", at_least=1)
    global_batch_size: int = setting(
        256,
        "Samples of one optimizer step over all ranks. A rank's batch is global_batch_size / (ranks × accumulation), "
        "which must be a whole number.",
        at_least=1,
    )
    accumulation: int = setting(
        1,
        "Number of batches that each rank processes for one optimizer step. Raise it to keep the global batch size "
        "with less memory or fewer ranks.",
        at_least=1,
        free_on_resume=True,
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto",
        'Number format of the network: "auto", "bf16", "fp16" or "fp32". "bf16" and "fp16" run the network under '
        'autocast, fp16 with a loss scaler. "auto" is bf16 if the device has instructions for it, otherwise fp16 on a '
        "GPU and fp32 on a CPU.",
    )
    clip_grad_norm: float = setting(
        0.0,
        "Largest 2-norm of the gradient over all parameters; 0 for no limit. A longer gradient is scaled down to it.",
        at_least=0,
    )
    seed: int = setting(
        0, "Seed of the weights, the order of the samples and the augmentation.", at_least=0, at_most=(1 << 20) - 1
    )  # torch's generator has 64 bits, which `training.step.seed_step` divides
    val_flip: bool = setting(
        False, "Score each validation image by the mean of its own logits and those of its mirror image."
    )
    eval_every: int = setting(
        1, "Epochs between validations. The last epoch is always validated.", at_least=1, free_on_resume=True
    )
    checkpoint_every: int = setting(
        0,
        "Steps between checkpoints. 0 writes them only at the end of each epoch, so a killed run loses up to an epoch.",
        at_least=0,
        free_on_resume=True,
    )
    keep_checkpoints: int = setting(
        2, "Number of newest checkpoints to keep, in addition to the best.", at_least=1, free_on_resume=True
    )
    log_every: int = setting(
        20,
        "Steps between log lines on the screen. The losses are fetched from the device and checked for NaN equally "
        "often.",
        at_least=1,
        free_on_resume=True,
    )
    timeout_s: int = setting(
        600,
        "Seconds without progress after which a run stops and names the rank and the stage that hang.",
        at_least=1,
        free_on_resume=True,
    )
    wandb: str = setting(
        "", "Weights & Biases project to log to, in addition to TensorBoard; empty for none.", free_on_resume=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one run. Defaults that depend on other settings are filled in."""

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
        warmup = warmup_of(self.schedule, self.train.epochs)  # raises ValueError if it is too long
        object.__setattr__(self, "schedule", replace(self.schedule, warmup_epochs=warmup))


def known_settings() -> dict[str, Setting]:
    """The declaration of every setting (text, range, …), by dotted key, in the order of declaration."""
    recipe = Recipe()
    return {
        f"{section.name}.{name}": about
        for section in fields(recipe)
        for name, about in settings_of(getattr(recipe, section.name)).items()
    }


# Settings that may change when a run is resumed: they alter the speed or the log, not the result.
FREE_ON_RESUME = frozenset(key for key, about in known_settings().items() if about.free_on_resume)


def recipe_at(recipe: Recipe, epoch: int) -> Recipe:
    """The recipe that applies in `epoch` (from 0), with the values of that phase and without `phases` of its own."""
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
    """The file of a recipe, given by name or path. Raises ValueError for an unknown one, with the known names."""
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    known = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
    if name in known:
        return known[name]
    if path.suffix == ".toml":
        raise ValueError(f"recipe {name}: no such file; give an existing .toml file, or a name in {FOLDER.name}/")
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? Known recipes are" if near else "unknown; known recipes are"
    raise ValueError(f"recipe {name!r}: {hint} {', '.join(known)}; or give a .toml file")
