"""The sections `[model]`, `[loss]`, `[optimizer]`, `[schedule]` and `[ema]` of a recipe, without torch.

What is wrong in a recipe is so told in half a second, before torch is imported. The names that a section may have are
those of the registry beside the code (`LOSSES`, `OPTIMIZERS`, `DECAYS`, `OWN_NETWORKS`), as a test sees to.
"""

import importlib.util
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

OWN_NAMES = ("airbench94", *(f"cifar_resnet{depth}" for depth in (8, 14, 20, 32, 44, 56)))  # model.networks has them


CompileMode = Literal["auto", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and how it runs. Unset (none) means as the network is published.

    name: torchvision's of any of its classification networks, or one of this project's.
    stem: `imagenet` is the network as published; `small` gives a ResNet a 3×3 stride-1 stem without max-pooling.
    zero_init_residual: start residual branches at zero (Goyal et al. 2017, section 5.1); unset means wherever the
        network has the option.
    blurpool: blur before strided convolutions with 16 channels and more, as the FFCV recipes do (model/blurpool.py).
    stochastic_depth: the probability that the last residual branch is dropped in training (model/stochastic_depth.py).
    dropout: the probability of the network's dropout: before the head in convolutional networks.
    aux_logits: GoogLeNet and Inception v3 train with their auxiliary heads, Inception v3 then on 299 px and more;
        validation sees the main head alone.
    pretrained: weights to start from: a file, a run, or one of torchvision's names (model/pretrained.py).
    channels_last: keep weights and activations in NHWC order.
    compile, compile_mode: `torch.compile` the network, "auto" on GPUs only. The first step of each image size then
        takes a minute. `reduce-overhead` records CUDA graphs, as does `max-autotune`, which also times more kernels.
        "auto" is `reduce-overhead` for one GPU without train.accumulation, else `default`.
    sync_batch_norm: BatchNorm over the batches of all ranks, for those too small each.
    """

    name: str = "resnet50"
    stem: Literal["imagenet", "small"] = "imagenet"
    zero_init_residual: bool | None = None
    blurpool: bool = False
    stochastic_depth: float | None = None
    dropout: float | None = None
    aux_logits: bool = False
    pretrained: str = ""
    channels_last: bool = True
    compile: Literal[False, True, "auto"] = False
    compile_mode: CompileMode = "auto"
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("stochastic_depth", "dropout"):
            probability = getattr(self, name)
            if probability is not None and not 0 <= probability < 1:
                raise ValueError(f"{name}: {probability} must be in [0, 1)")
        if self.compile_mode not in ("auto", "default") and not self.compile:
            raise ValueError(f"compile_mode = {self.compile_mode} does nothing without compile = true")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """name: "cross_entropy" of the softmax; "bce", binary cross-entropy of each class's sigmoid; "mse", squared
        distance of the logits themselves to the target shares (Hui & Belkin 2021, without their rescaling). The last
        two are means over the classes, as in torch and timm, not sums.
    label_smoothing: s of the target 1 − s + s / C for the class and s / C for the others (Szegedy et al. 2016,
        section 7).
    bce_target_threshold: targets above it become 1, the others 0, after smoothing; so an image made by mixup or CutMix
        shows each of its classes in full (Wightman et al. 2021, "ResNet strikes back"; timm's `--bce-target-thresh`).
    aux_weight: of each auxiliary head's loss beside the main head's (0.4 for Inception v3, 0.3 for GoogLeNet).
    """

    name: Literal["cross_entropy", "bce", "mse"] = "cross_entropy"
    label_smoothing: float = 0.1
    bce_target_threshold: float | None = None
    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        _known(self, "loss")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: {self.label_smoothing} must be in [0, 1)")
        if not self.aux_weight >= 0:
            raise ValueError(f"aux_weight: {self.aux_weight} must be 0 or more")
        if self.bce_target_threshold is not None:
            if self.name != "bce":
                raise ValueError('bce_target_threshold: has no effect unless name = "bce"; leave it out')
            if not 0 <= self.bce_target_threshold < 1:
                raise ValueError(f"bce_target_threshold: {self.bce_target_threshold} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """name: "sgd", "adagrad", "rmsprop", "adam" and "adamw" are torch's; "lars" (You et al. 2017), "lamb" (You et al.
        2019), "lion" (Chen et al. 2023) and "adan" (Xie et al. 2022) are timm's.
    lr: the base learning rate of a step, as it is: nothing scales it by the batch size.
    weight_decay: on weights of two or more dimensions; norms and biases have none. adamw, lion and adan decay the
        weights by lr · weight_decay, lamb adds it to the update before it is scaled, the others to the gradient (L2).
    bias_lr_scale: how many times `lr` the norms and biases get (64 in Jordan 2024, section 3.4, "scalebias").
    momentum: of sgd, rmsprop and lars. LARS sums gradients before they are multiplied by lr, as torch's SGD does; the
        paper's sum has the lr in it, to which Goyal et al. 2017 (section 3) and NVIDIA's MLPerf code apply a momentum
        correction that comes to the same as this.
    nesterov: of sgd.
    betas: of adam, adamw, lamb and lion two, of adan three; unset, those of its paper.
    eps: what keeps a quotient finite; unset, the library's. Not of sgd and lion, which have none.
    alpha: of rmsprop, the average's decay.
    trust_coefficient: of lars, η in its paper. Norms and biases keep the plain lr in LARS and LAMB (as in MLPerf's and
        NVIDIA's).
    fused: one kernel for all parameters; unset means where torch has one for the device: on CPU and CUDA, adagrad's on
        CPU only. rmsprop and timm's have none.
    """

    name: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "adan", "lion", "lars", "lamb"] = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-5
    bias_lr_scale: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, ...] | None = None
    eps: float | None = None
    alpha: float = 0.99
    trust_coefficient: float = 0.001
    fused: bool | None = None

    def __post_init__(self) -> None:
        _known(self, "optimizer")
        for name in ("lr", "bias_lr_scale", "trust_coefficient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be in [0, 1)")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: {self.weight_decay} must be 0 or more")
        if self.eps is not None and not self.eps >= 0:
            raise ValueError(f"eps: {self.eps} must be 0 or more")
        _all_read(self, OPTIMIZERS_READ)
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0; set nesterov = false")
        wanted = 3 if self.name == "adan" else 2
        if self.betas is not None and (len(self.betas) != wanted or not all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas: {list(self.betas)} must be {wanted} numbers in [0, 1)")


# setting → the optimizers that read it
OPTIMIZERS_READ: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "rmsprop", "lars"),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw", "adan", "lion", "lamb"),
    "eps": ("adagrad", "rmsprop", "adam", "adamw", "adan", "lars", "lamb"),
    "alpha": ("rmsprop",),
    "trust_coefficient": ("lars",),
    "fused": ("sgd", "adagrad", "adam", "adamw"),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """name: the decay after the warm-up. With a warm-up from 0, "linear" is ffcv-imagenet's triangle. "step" multiplies
        by `gamma` at each of `milestones`, or every `step_epochs`, both counted from the run's start. "polynomial" is
        (1 − progress) ** power. "one_cycle" rises along a cosine, too, as torch's OneCycleLR (Smith & Topin 2018; the
        momentum is not cycled): `warmup_epochs` is its rise, pct_start · epochs there, 1 / start_factor its div_factor.
    warmup_epochs: may be a fraction; unset, 5, or a fifth of a run shorter than 25. start_factor: of base_lr, where the
        warm-up begins. The rise is linear.
    decay_after_warmup: whether the decay begins where the warm-up ends (Goyal et al. 2017); false lets it run from the
        run's start, under the warm-up, after which the learning rate falls at once to where the decay is (timm's way).
    final_lr: where the decay ends; a learning rate, not a factor.
    """

    name: Literal["cosine", "linear", "constant", "step", "polynomial", "one_cycle"] = "cosine"
    warmup_epochs: float | None = None
    start_factor: float = 0.01
    decay_after_warmup: bool = True
    final_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    step_epochs: float = 0.0
    gamma: float = 0.1
    power: float = 2.0

    def __post_init__(self) -> None:
        _known(self, "schedule")
        for name in ("warmup_epochs", "final_lr", "step_epochs"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more")
        if not 0 <= self.start_factor <= 1:
            raise ValueError(f"start_factor: {self.start_factor} must be in [0, 1]")
        for name in ("gamma", "power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        if any(a >= b for a, b in zip((0.0, *self.milestones), self.milestones, strict=False)):
            raise ValueError(f"milestones: {list(self.milestones)} must be above 0 and grow")
        _all_read(self, SCHEDULES_READ)
        if self.name == "step" and bool(self.milestones) == bool(self.step_epochs):
            raise ValueError('milestones: name = "step" needs either milestones or step_epochs')
        if not self.decay_after_warmup and self.warmup_epochs == 0:
            raise ValueError("decay_after_warmup: has no effect with warmup_epochs = 0; leave it out")


# setting → the schedules that read it
SCHEDULES_READ: dict[str, tuple[str, ...]] = {
    "decay_after_warmup": ("cosine", "linear", "polynomial"),
    "final_lr": ("cosine", "linear", "polynomial", "one_cycle"),
    "milestones": ("step",),
    "step_epochs": ("step",),
    "gamma": ("step",),
    "power": ("polynomial",),
}


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """decay: of one step; 0 switches the average off. warmup: decay (1 + t) / (10 + t) while that is less, so that a
    short run forgets its first weights (as in Inception's training, TensorFlow's `num_updates`)."""

    decay: float = 0.0
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: {self.decay} must be in [0, 1)")


def check_network(name: str) -> None:
    """Raises ValueError for a network that `build_model` does not know, with the nearest names."""
    known = (*OWN_NAMES, *torchvision_names())
    if name not in known and len(known) > len(OWN_NAMES):
        raise unknown_network(name, known)


def unknown_network(name: str, known: Collection[str]) -> ValueError:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "model.networks.list_networks() has the names"
    return ValueError(f"unknown network {name!r}: {hint}")


@cache
def torchvision_names() -> tuple[str, ...]:
    """The classification networks of the torchvision that is installed, read from its sources, since its import takes
    10 s; none where the sources are not there."""
    package = importlib.util.find_spec("torchvision")
    folders = list(package.submodule_search_locations or ()) if package else []
    sources = [file.read_text(encoding="utf-8") for folder in folders for file in Path(folder).glob("models/*.py")]
    registered = re.compile(r'^@register_model\((?:name="(\w+)")?\)$.*?^def (\w+)', re.MULTILINE | re.DOTALL)
    return tuple(sorted(name or function for source in sources for name, function in registered.findall(source)))


def _known(section: Any, kind: str) -> None:
    """Raises ValueError where the section's `name` is none of those that its annotation allows."""
    names = get_args(get_type_hints(type(section))["name"])
    if section.name not in names:
        raise ValueError(f"name: unknown {kind} {section.name!r}: {', '.join(names)}")


def _all_read(section: Any, readers: Mapping[str, Collection[str]]) -> None:
    """Raises ValueError for a setting that is given though nothing reads it with the section's `name`."""
    for field in fields(section):
        if getattr(section, field.name) != field.default and section.name not in readers.get(
            field.name, (section.name,)
        ):
            raise ValueError(f'{field.name}: has no effect with name = "{section.name}"; leave it out')
