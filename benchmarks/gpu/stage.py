"""What a stage is, and what it is given: how much of everything, folders, the machine, a report."""

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
    """How much of everything. seconds, repeats: of each rate. sets: laid over ResNet-50's recipe, last."""

    sets: tuple[str, ...] = ()
    batch_size: int = 256
    seconds: float = 1.0
    repeats: int = 5
    copy_bytes: int = 4 << 30
    matmul_side: int = 8192
    run_images: int = 2048  # training images of the small set that train.py runs on
    recipes: tuple[str, ...] = ()  # none: all
    recipe_steps: int = 10
    recipe_sets: tuple[str, ...] = ("train.global_batch_size=64",)
    cifar_sets: tuple[str, ...] = ()
    jpegs: str = "synthetic:469x401"


SMALL_NETWORK = ("model.name=cifar_resnet8", "model.stem=imagenet", "train.precision=fp32")
SMALL_IMAGES = ("data.image_size=32", "data.val_image_size=32", "data.val_resize_size=32")
EAGER = ("model.compile=false",)
COMPILED = ("model.compile=true", "model.compile_mode=default")  # no CUDA graphs, on which a profile tells less
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
    """What a stage is given.

    work: a folder that the stages of this call share, gone at its end. env: the facts of the machine, as in results.
    data, cifar: packed datasets, where the user gave them. sets: the user's `section.key=value`.
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
        """ResNet-50 as the standard recipe trains it, with `section.key=value` laid over it: the user's, over those
        the stage's own. In a rehearsal something small in its place."""
        return config.load_config(Recipe, recipe_file("rn50-90ep"), (*self.sets, *sets, *self.scale.sets))


class Stage(NamedTuple):
    """expected: for people. needs: "gpu", "cifar" or modules; where one is missing the stage is skipped."""

    name: str
    part: str
    limit_s: float
    run: Callable[[Job], None]
    expected: str
    needs: tuple[str, ...] = ()
