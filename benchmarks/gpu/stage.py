"""The definition of a stage and its input: the scale of the work, folders, the machine, and the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from penstock.benchmarks.gpu.report import Report
from penstock.recipes import Recipe, config, recipe_file
from penstock.training.distributed import World


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The amount of work. seconds, repeats: for each rate. sets: the last overrides of ResNet-50's recipe."""

    sets: tuple[str, ...] = ()
    batch_size: int = 256
    seconds: float = 1.0
    repeats: int = 5
    copy_bytes: int = 4 << 30
    matmul_side: int = 8192
    run_images: int = 2048  # training images of the small set that train.py runs on
    recipes: tuple[str, ...] = ()  # empty: all
    recipe_steps: int = 10
    recipe_sets: tuple[str, ...] = ("train.global_batch_size=64",)
    cifar_sets: tuple[str, ...] = ()
    jpegs: str = "synthetic:469x401"


SMALL_NETWORK = ("model.name=cifar_resnet8", "model.stem=imagenet", "train.precision=fp32")
SMALL_IMAGES = ("data.image_size=32", "data.val_image_size=32", "data.val_resize_size=32")
EAGER = ("model.compile=false",)
COMPILED = (
    "model.compile=true",
    "model.compile_mode=default",
)  # no CUDA graphs, since they hide details from a profile
FULL = Scale()
SMALL = Scale(
    sets=(*SMALL_NETWORK, *SMALL_IMAGES),
    batch_size=8, seconds=0.1, repeats=2, copy_bytes=1 << 22, matmul_side=128, jpegs="synthetic:64x48", run_images=256,
    recipes=("rn50-16ep", "rn50-a3", "finetune"), recipe_steps=2,
    recipe_sets=(*SMALL_NETWORK, *SMALL_IMAGES, "train.global_batch_size=8", "phases.start_epochs=[]",
                 "phases.image_size=[]"),
    cifar_sets=(*SMALL_NETWORK, "train.epochs=2", "train.global_batch_size=32", "schedule.warmup_epochs=1"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input of a stage.

    work: a folder that the stages of this run share, deleted at its end. env: the facts of the machine, as in results.
    data, cifar: packed datasets, if the user gave them. sets: the user's `section.key=value`.
    """

    out: Path
    work: Path
    scale: Scale = FULL
    rehearse: bool = False
    env: Mapping[str, object] = field(default_factory=dict)
    data: Path | None = None
    cifar: Path | None = None
    sets: tuple[str, ...] = ()
    report: Report = field(default=None, repr=False)  # type: ignore[assignment]  # the stage's process makes it

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.rehearse else torch.device("cuda", 0)

    @property
    def world(self) -> World:
        return World(rank=0, local_rank=0, world_size=1, local_world_size=1, device=self.device)

    def resnet(self, *sets: str) -> Recipe:
        """Return the standard ResNet-50 recipe with the user's `section.key=value`, overridden by the stage's own.

        A rehearsal gets a small network instead.
        """
        return config.load_config(Recipe, recipe_file("rn50-90ep"), (*self.sets, *sets, *self.scale.sets))


class Stage(NamedTuple):
    """One stage. expected: in words. needs: "gpu", "cifar" or modules. If one is missing, the stage is skipped."""

    name: str
    part: str
    limit_s: float
    run: Callable[[Job], None]
    expected: str
    needs: tuple[str, ...] = ()
