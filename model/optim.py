"""Optimizers by name: `OptimizerConfig` and a model → `torch.optim.Optimizer`. One entry in `OPTIMIZERS` each.

torch's own, fused where torch has such a kernel, and timm's for what torch lacks. Where nothing is fused, both take
their multi-tensor ("foreach") path on a GPU by themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn, optim

Group = dict[str, Any]
Name = Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "adan", "lion", "lars", "lamb"]


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

    name: Name = "sgd"
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
        if self.name not in OPTIMIZERS:
            raise ValueError(f"name: unknown optimizer {self.name!r}: {', '.join(OPTIMIZERS)}")
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
        for field in fields(self):
            if getattr(self, field.name) != field.default and self.name not in _READ_WITH.get(field.name, OPTIMIZERS):
                raise ValueError(f'{field.name}: has no effect with name = "{self.name}"; leave it out')
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0; set nesterov = false")
        wanted = 3 if self.name == "adan" else 2
        if self.betas is not None and (len(self.betas) != wanted or not all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas: {list(self.betas)} must be {wanted} numbers in [0, 1)")


def param_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Two optimizer groups: weights (ndim ≥ 2) with `weight_decay`, norms and biases (ndim ≤ 1) with none.

    By dimension, not by name (He et al. 2018, "Bag of Tricks", section 3.1). Each trainable parameter is in exactly
    one group, a shared one once; frozen ones are in none; an empty group is left out.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """The optimizer that `config` names over `param_groups(model)`; `set_lr` gives it the schedule's learning rate.

    Raises ValueError for a model without trainable parameters.
    """
    groups = param_groups(model, config.weight_decay)
    if not groups:
        raise ValueError("the model has no trainable parameters")
    optimizer = OPTIMIZERS[config.name](groups, config)
    for group in optimizer.param_groups:
        group["lr_scale"] = config.bias_lr_scale if group["params"][0].ndim <= 1 else 1.0
    set_lr(optimizer, config.lr)
    return optimizer


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Make `lr` the learning rate of the weights, and its multiple that of norms and biases."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # a state from before there was one


def _sgd(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    fused = _fused(groups, config)
    return optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


def _adagrad(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    fused = _fused(groups, config, devices=("cpu",))  # torch 2.11 has no such kernel for CUDA
    return optim.Adagrad(groups, config.lr, fused=fused, **_given(config, "eps"))


def _rmsprop(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    return optim.RMSprop(groups, config.lr, config.alpha, momentum=config.momentum, **_given(config, "eps"))


def _adam(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    return optim.Adam(groups, config.lr, fused=_fused(groups, config), **_given(config, "betas", "eps"))


def _adamw(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    return optim.AdamW(groups, config.lr, fused=_fused(groups, config), **_given(config, "betas", "eps"))


def _adan(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    from timm.optim import Adan

    return Adan(groups, config.lr, **_given(config, "betas", "eps"))


def _lion(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    from timm.optim import Lion

    return Lion(groups, config.lr, **_given(config, "betas"))


def _lars(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    from timm.optim import Lars

    own: Group = {"momentum": config.momentum, "trust_coeff": config.trust_coefficient}
    return Lars(_adapted(groups), config.lr, **own, **_given(config, "eps"))


def _lamb(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    from timm.optim import Lamb

    # Clipping is train.clip_grad_norm's, for every optimizer, and not once more in this one.
    return Lamb(_adapted(groups), config.lr, max_grad_norm=None, **_given(config, "betas", "eps"))


OPTIMIZERS: dict[str, Callable[[list[Group], OptimizerConfig], optim.Optimizer]] = {
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "adan": _adan,
    "lion": _lion,
    "lars": _lars,
    "lamb": _lamb,
}
# setting → the optimizers that read it
_READ_WITH: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "rmsprop", "lars"),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw", "adan", "lion", "lamb"),
    "eps": ("adagrad", "rmsprop", "adam", "adamw", "adan", "lars", "lamb"),
    "alpha": ("rmsprop",),
    "trust_coefficient": ("lars",),
    "fused": ("sgd", "adagrad", "adam", "adamw"),
}


def _given(config: OptimizerConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _fused(groups: list[Group], config: OptimizerConfig, devices: tuple[str, ...] = ("cpu", "cuda")) -> bool:
    if config.fused is not None:
        return config.fused
    return all(p.device.type in devices and p.is_floating_point() for g in groups for p in g["params"])


def _adapted(groups: list[Group]) -> list[Group]:
    """Weights get a layer-wise lr even where they do not decay, which timm would take for a sign not to."""
    return [group | {"always_adapt": group["params"][0].ndim >= 2} for group in groups]
