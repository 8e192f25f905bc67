"""The network, optimizer and position of a run: build them from a recipe, capture and restore them in checkpoints."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from penstock.model.ema import Ema
from penstock.model.losses import Loss, build_loss
from penstock.model.networks import build_model
from penstock.model.optim import build_optimizer
from penstock.model.pretrained import Rows, load_pretrained
from penstock.model.schedule import lr_at
from penstock.model.weight_files import Classes
from penstock.recipes import FREE_ON_RESUME, Recipe, config
from penstock.shard_tools.class_match import match_classes
from penstock.shards.format import ClassInfo, ShardSet
from penstock.training import checkpoint, distributed, environment
from penstock.training.checkpoint import About, Captured, CheckpointState, DatasetFacts
from penstock.training.distributed import World
from penstock.training.records import Scores
from penstock.training.refusal import first_line
from penstock.training.teacher import build_teacher


class Learner(NamedTuple):
    """The parts that a step uses. `model` runs `net`, wrapped for several ranks and compiled if the recipe says so."""

    net: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss_fn: Loss
    autocast: AbstractContextManager[object]
    ema: Ema | None
    teacher: nn.Module | None = None

    def answers(self, images: Tensor) -> Tensor | None:
        """The teacher's logits (N, C) for images (N, 3, S, S), for the loss; None without a teacher."""
        return None if self.teacher is None else self.teacher(images)

    @property
    def nets(self) -> dict[str, nn.Module]:
        """The networks to score: prefix of the scores (`training.records.Scores`) → network."""
        return {"": self.net, "ema_": self.ema.net} if self.ema else {"": self.net}

    @property
    def is_compiled(self) -> bool:
        """Whether the first step of each image size compiles the network, which takes a minute or more."""
        return hasattr(self.model, "_orig_mod")  # an attribute of torch.compile's wrapper


@dataclass
class RunState:
    """The position of a run. A checkpoint holds this and the states of net, optimizer and scaler.

    schedule_epoch: epochs of the recipe's schedule that are done. With a time limit it runs ahead of `epoch`.
    pace: how many times faster than the data the schedule goes, for the same reason (`training.budget`).
    phase_epoch: the schedule's epoch when this epoch began. It determines the phase of this epoch.
    """

    epoch: int = 0
    position: int = 0  # samples of this epoch trained on, over all ranks
    step: int = 0  # optimizer steps done in the whole run
    schedule_epoch: float = 0.0
    pace: float = 1.0
    phase_epoch: int = 0
    elapsed_s: float = 0.0  # of the whole run, over its restarts
    epoch_digest: int = 0  # of the sample ids of this epoch (`training.digest.sample_digest`)
    best_top1: float = -1.0
    best_images: int = 0  # the number of images that best_top1 was scored on
    validation: Scores | None = None  # the scores of the current net

    @property
    def is_fitted(self) -> bool:
        """Whether the schedule runs ahead of the data."""
        return self.pace > 1 or self.schedule_epoch > self.epoch + 1

    def is_over(self, epochs: int, last_step: int) -> bool:
        """Whether the schedule's epochs or the last step are done."""
        return self.schedule_epoch >= epochs or self.step >= last_step

    def stepped(self, position: int, *, steps_per_epoch: int, global_batch_size: int) -> None:
        """Record one more step, which ends at `position`. The schedule keeps its lead over the data."""
        ahead = self.schedule_epoch - (self.epoch + self.position // global_batch_size / steps_per_epoch)
        ahead += (self.pace - 1.0) / steps_per_epoch
        self.step, self.position, self.validation = self.step + 1, position, None
        self.schedule_epoch = self.epoch + position // global_batch_size / steps_per_epoch + ahead

    def validated(self, figures: Scores) -> bool:
        """Record a validation's scores. Return whether they are the best so far on the same number of images."""
        top1, num_images = figures.get("ema_top1", figures["top1"]), figures["num_images"]
        is_best = top1 > self.best_top1 or self.best_images not in (0, num_images)
        self.validation, self.best_images = figures, num_images
        self.best_top1 = top1 if is_best else self.best_top1
        return is_best

    def is_validated_on(self, num_images: int) -> bool:
        return self.validation is not None and self.validation["num_images"] == num_images


def build_learner(
    recipe: Recipe,
    num_classes: int,
    world: World,
    say: Callable[[str], None] = lambda line: None,
    classes: Sequence[ClassInfo] = (),
) -> Learner:
    """Build a new learner. If `classes` are given, as in a run, it starts from the recipe's pretrained weights, if any.

    `say` is called with a line about which pretrained weights fit the classes, and one about the teacher. Without
    classes the weights are random, and a teacher may have other classes, which is enough for a benchmark.
    """
    rows_of = partial(_rows_of, classes) if classes else None
    torch.manual_seed(recipe.train.seed)
    net = build_model(recipe.model, num_classes, recipe.data.image_size)
    if recipe.model.pretrained and classes:
        say(load_pretrained(net, recipe.model, rows_of))
    _check_sizes(net, recipe)
    net = net.to(world.device)
    _check_graphs(recipe, world.device)
    compiled = _is_compiled(recipe, world.device, say)
    static_graph = recipe.train.accumulation == 1 and not compiled
    net, model = distributed.wrap(net, world, sync_batch_norm=recipe.model.sync_batch_norm, static_graph=static_graph)
    if compiled:  # separately for each size: a phase's new size would make shapes symbolic, and kernels slower
        model = torch.compile(model, mode=_compile_mode(recipe, world), dynamic=False)  # type: ignore[assignment]
    return Learner(
        net=net,
        model=model,
        optimizer=build_optimizer(net, recipe.optimizer),
        scaler=torch.amp.GradScaler(world.device.type, enabled=autocast_dtype(recipe, world.device) == torch.float16),
        loss_fn=build_loss(recipe.loss),
        autocast=autocast_of(recipe, world.device),
        ema=Ema(net, recipe.ema) if recipe.ema.decay else None,
        teacher=build_teacher(recipe, num_classes, world.device, rows_of=rows_of, compiled=compiled, say=say),
    )


def _rows_of(classes: Sequence[ClassInfo], theirs: Classes) -> Rows:
    """The rows of a head for the classes `theirs` that match `classes`."""
    match = match_classes(classes, [ClassInfo(key, name) for key, name in theirs])
    return Rows(match.labels, "matched by their numbers alone, as they have no names" if match.by_number else "")


def _is_compiled(recipe: Recipe, device: torch.device, say: Callable[[str], None]) -> bool:
    """Whether to compile. Raises ValueError if the recipe requires it and the machine has no C or C++ compiler."""
    if recipe.model.compile is False or (recipe.model.compile == "auto" and device.type != "cuda"):
        return False
    variable, names = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else ("CXX", ("g++", "clang++", "c++"))
    if any(map(shutil.which, filter(None, (os.environ.get(variable), *names)))):
        return True
    lacking = f"torch.compile needs one of {', '.join(names)} on the PATH, or ${variable}"
    if recipe.model.compile == "auto":
        say(f"the network is not compiled: {lacking}")
        return False
    raise ValueError(f"model.compile: {lacking}. Install one, or set model.compile = false")


def _compile_mode(recipe: Recipe, world: World) -> str:
    """torch's name of the mode. "auto" uses CUDA graphs only in the tested case: one GPU, one batch per step."""
    if recipe.model.compile_mode != "auto":
        return recipe.model.compile_mode
    graphs = world.device.type == "cuda" and world.world_size == 1 and recipe.train.accumulation == 1
    return "reduce-overhead" if graphs else "default"


def _check_graphs(recipe: Recipe, device: torch.device) -> None:
    """Raise ValueError if CUDA graphs would overwrite gradients during accumulation (pytorch issue 169545): each batch
    of an accumulated step replays the graph that owns the memory of the gradients."""
    mode = recipe.model.compile_mode
    if device.type == "cuda" and recipe.train.accumulation > 1 and mode in ("reduce-overhead", "max-autotune"):
        raise ValueError(
            f"model.compile_mode: {mode} records CUDA graphs, which overwrite the gradients that train.accumulation = "
            f"{recipe.train.accumulation} adds up. Use default or max-autotune-no-cudagraphs, or accumulation = 1"
        )


def _check_sizes(net: nn.Module, recipe: Recipe) -> None:
    """Raise ValueError if the network accepts only one image size (a vision transformer) and the recipe has another."""
    own = getattr(net, "image_size", None)
    sizes = [("data.image_size", recipe.data.image_size), ("data.val_image_size", recipe.data.val_image_size)]
    for name, size in [*sizes, *(("phases.image_size", size) for size in recipe.phases.image_size)]:
        if own not in (None, size):
            raise ValueError(f"{name} = {size}: {recipe.model.name} accepts only images of {own} px")


def autocast_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """The half precision that the network runs in under autocast, or None for float32."""
    precision = recipe.train.precision
    if precision == "auto":
        precision = environment.best_precision(device)
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def autocast_of(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the network runs. It can be entered repeatedly."""
    dtype = autocast_dtype(recipe, device)
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()


def capture(learner: Learner, state: RunState) -> Captured:
    """The part of a checkpoint that steps change. The tensors are the learner's own, not copies."""
    return {
        "at": asdict(state),
        "net": learner.net.state_dict(),
        "ema": learner.ema.net.state_dict() if learner.ema else None,
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
    }


def about(recipe: Recipe, dataset: ShardSet) -> About:
    """The rest of a checkpoint. It never changes during a run, so it is made once (6 ms for ImageNet's classes)."""
    encode = dataset.made.get("encode")
    return {
        "recipe": config.to_toml(recipe),
        **known_by(dataset),
        "oriented": isinstance(encode, dict) and bool(encode.get("apply_orientation")),  # so `predict` turns its images
        "classes": [asdict(c) for c in dataset.classes],
    }


def known_by(dataset: ShardSet) -> DatasetFacts:
    """The facts that identify a dataset, and its number of images."""
    return {"dataset": dataset.fingerprint, "splits": {name: len(split) for name, split in dataset.splits.items()}}


def _difference(saved: CheckpointState, dataset: ShardSet) -> str:
    """Describe how the dataset of a checkpoint differs from this one."""
    classes = [asdict(c) for c in dataset.classes]
    if len(saved["classes"]) != len(classes):
        return f"{len(saved['classes'])} classes, not the {len(classes)} of {dataset.root}"
    if saved["classes"] != classes:
        first = next(a["wnid"] for a, b in zip(saved["classes"], classes, strict=True) if a != b)
        return f"other classes than {dataset.root}, for example {first}"
    splits = saved.get("splits", {})  # older checkpoints do not have it
    for name, split in dataset.splits.items():
        if (number := splits.get(name, len(split))) != len(split):
            return f"{number:,} images in {name}, not the {len(split):,} of {dataset.root}"
    return f"the same classes and numbers of images as {dataset.root}, but other shards"


def set_state(learner: Learner, saved: Captured) -> RunState:
    """Load the result of `capture` into the learner, and return the position of the run."""
    learner.net.load_state_dict(saved["net"])
    learner.optimizer.load_state_dict(saved["optimizer"])
    learner.scaler.load_state_dict(saved["scaler"])
    if learner.ema:
        if saved["ema"] is None:
            raise ValueError("it has no averaged weights")
        learner.ema.net.load_state_dict(saved["ema"])
    return RunState(**saved["at"])


def restore(
    paths: Sequence[Path], recipe: Recipe, dataset: ShardSet, learner: Learner, say: Callable[[str], None]
) -> RunState:
    """Load the first readable checkpoint of `paths` into the learner. Print a line for each that cannot be read.

    Raises ValueError, with the difference, if it belongs to another recipe, network or dataset, or if none is readable.
    """
    path, saved = checkpoint.load_newest(list(paths), say)
    checkpoint.require(saved, ("at", "net", "optimizer", "scaler", "recipe", "dataset", "classes"), path)
    fresh = "give --resume never to start from scratch"
    changes = config.diff(config.from_toml(Recipe, saved["recipe"], str(path)), recipe)
    changes = [line for line in changes if line.partition(":")[0] not in FREE_ON_RESUME]
    longer = next((line for line in changes if line.startswith("train.epochs:")), "")
    changes = [line for line in changes if line != longer]
    if changes:
        raise ValueError(f"{path}: made with other settings ({'; '.join(changes)}). Undo that, or {fresh}")
    if saved["dataset"] != dataset.fingerprint:
        other = _difference(saved, dataset)
        raise ValueError(f"{path}: made with another dataset ({other}). Give that one with --data, or {fresh}")
    try:
        state = set_state(learner, saved)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: does not fit this network ({first_line(error)}). Undo the change, or {fresh}"
        ) from None
    say(f"resuming from {path}, step {state.step}")
    if longer:
        say(_other_length(longer, path, recipe, state))
    return state


def _other_length(change: str, path: Path, recipe: Recipe, state: RunState) -> str:
    """Explain the effect of a new number of epochs in the recipe. Raises ValueError if they are done already."""
    epoch, epochs = state.schedule_epoch, recipe.train.epochs
    if epoch >= epochs:
        raise ValueError(f"{path}: {epoch:.4g} epochs are done, but {change}. Give more epochs, or --resume never")
    lr = lr_at(epoch, epochs=epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule)
    return f"{change}: continuing at epoch {epoch:.4g} of the new schedule, with learning rate {lr:.3g}"


def start_or_resume(
    paths: Sequence[Path],
    recipe: Recipe,
    dataset: ShardSet,
    learner: Learner,
    world: World,
    say: Callable[[str], None],
) -> RunState:
    """Restore the run, or start from the beginning without `paths`. The result is the same on all ranks.

    Raises what `restore` does, and ValueError if a rank has read another checkpoint than rank 0.
    """
    state = restore(paths, recipe, dataset, learner, say) if paths else RunState()
    steps = distributed.gather(state.step, world)
    other = next((rank for rank, step in enumerate(steps) if step != steps[0]), None)
    if other is not None:
        raise ValueError(
            f"rank 0 would resume at step {steps[0]}, but rank {other} at step {steps[other]}, as they read different "
            "checkpoints. Make sure that all nodes share the run directory, and start again"
        )
    return state
