"""What a stage is, and what it is given: how much of everything, folders, the machine, a report."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.gpu.expected import Bounds, bounds_of
from benchmarks.gpu.report import Report
from recipes import Recipe, config, recipe_file
from training import environment
from training.distributed import World


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything. seconds, repeats: of a rate; turn_s, turns: of each where many are tried."""

    network: str = "resnet50"
    num_classes: int = 1000
    image_size: int = 224
    batch_sizes: tuple[int, ...] = (256, 512)
    precisions: tuple[str, str] = ("bf16", "fp16")
    seconds: float = 1.0
    repeats: int = 5
    turn_s: float = 0.7
    turns: int = 3
    copy_bytes: int = 4 << 30
    matmul_side: int = 8192
    run_images: int = 2048  # training images of the small set that train.py runs on
    run_epochs: int = 2
    recipes: tuple[str, ...] = ()  # none: all
    recipe_steps: int = 10
    recipe_sets: tuple[str, ...] = ("train.global_batch_size=64",)
    compiled_recipe: str = "cifar10-rn18"
    bare_steps: int = 60
    sync_steps: int = 20  # of a run; another has twice as many
    jpegs: str = "synthetic:469x401"
    jpeg_images: int = 256  # of a kind of JPEG
    jpeg_batches: int = 4  # compared pixel by pixel
    jpeg_batch: int = 128
    jpeg_side: int = 469
    loads: tuple[float, ...] = (0.0, 0.65, 1.0)
    fine_loads: tuple[float, ...] = (0.65, 0.0, 0.12, 0.3, 0.5, 1.0)
    kinds: tuple[str, ...] = ("420", "444", "gray", "progressive", "mixed")
    prefetches: tuple[int, ...] = (1, 2, 4, 8)
    threads: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)  # up to twice the cores
    cifar_sets: tuple[str, ...] = ()


SMALL_NETWORK = ("model.name=cifar_resnet8", "model.stem=imagenet")
FULL = Scale()
SMALL = Scale(
    network="cifar_resnet8",
    num_classes=10,
    image_size=32,
    batch_sizes=(8,),
    precisions=("fp32", "bf16"),
    seconds=0.1,
    repeats=2,
    turn_s=0.1,
    turns=1,
    copy_bytes=1 << 22,
    matmul_side=128,
    run_images=256,
    recipes=("rn50-16ep", "rn50-a3"),
    recipe_steps=2,
    recipe_sets=(
        *SMALL_NETWORK, "train.global_batch_size=8", "train.precision=fp32", "data.image_size=32",
        "data.val_image_size=32", "data.val_resize_size=32", "phases.start_epochs=[]", "phases.image_size=[]",
    ),
    compiled_recipe="",
    bare_steps=4,
    sync_steps=4,
    jpegs="synthetic:64x48",
    jpeg_images=16,
    jpeg_batches=2,
    jpeg_batch=8,
    jpeg_side=64,
    loads=(0.65,),
    fine_loads=(0.0, 0.65),
    kinds=("420", "mixed"),
    prefetches=(1, 2),
    threads=(1, 2),
    cifar_sets=(*SMALL_NETWORK, "train.epochs=2", "train.global_batch_size=32", "schedule.warmup_epochs=1"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a stage is given.

    work: a folder that the stages of this call share, gone at its end. env: the facts of the machine, as in results.
    start_method: of processes, as in `multiprocessing`. data, cifar: packed datasets, where the user gave them.
    sets: the user's `section.key=value`.
    """

    out: Path
    work: Path
    scale: Scale = FULL
    rehearse: bool = False
    on_gpu: bool = True
    env: dict[str, Any] = field(default_factory=dict)
    start_method: Literal["fork", "spawn"] = "fork"
    data: Path | None = None
    cifar: Path | None = None
    sets: tuple[str, ...] = ()
    report: Report = field(default=None, repr=False)  # type: ignore[assignment]  # the stage's process makes it

    def process(self, target: Callable[..., object], *arguments: Any) -> BaseProcess:
        """A process that is still to be started."""
        if self.start_method == "spawn":
            return multiprocessing.get_context("spawn").Process(target=target, args=arguments)
        return multiprocessing.get_context("fork").Process(target=target, args=arguments)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")

    @property
    def world(self) -> World:
        return World(rank=0, local_rank=0, world_size=1, local_world_size=1, device=self.device)

    @property
    def bounds(self) -> Bounds | None:
        return bounds_of(self.env.get("gpu")) if self.on_gpu else None

    def recipe(self, name: str, *sets: str) -> Recipe:
        """A recipe of recipes/ with `section.key=value` laid over it: the user's, which the result then names, and over
        those the stage's own."""
        if self.sets:
            self.report.settings(set=self.sets)
        return config.load_config(Recipe, recipe_file(name), (*self.sets, *sets))

    def resnet(self, *sets: str) -> Recipe:
        """ResNet-50 as the standard recipe trains it; in a rehearsal something small in its place."""
        scale = self.scale
        sizes = [f"data.{name}={scale.image_size}" for name in ("image_size", "val_image_size", "val_resize_size")]
        return self.recipe("rn50-90ep", f"model.name={scale.network}", *sizes, *sets)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """needs: of the names in `run.NEEDS`; where one is missing the stage is skipped. expected: for people."""

    name: str
    part: str
    limit_s: float
    expected: str
    run: Callable[[Job], None]
    needs: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """Of what a figure on a GPU depends on besides `environment.PACKAGES`, as far as it is installed."""
    names = ("triton", "nvidia-nvjpeg", "nvidia-nvjpeg-cu12", "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13",
             "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-dali-cuda120", "nvidia-dali-cuda130",
             "timm", "pytest")  # fmt: skip
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """The facts of the machine, for each result. Touches CUDA: only in a process that ends with it.

    bad_fork: whether the process was forked from one that had touched CUDA, which then cannot be used.
    """
    bad_fork = torch.cuda._is_in_bad_fork()
    return environment.describe() | {
        "cuda_available": torch.cuda.is_available(), "bad_fork": bad_fork, "versions": versions()
    }  # fmt: skip
