"""Optimizers by name: `OptimizerConfig` and a model → `torch.optim.Optimizer`. One entry in `OPTIMIZERS` each.

torch's own, fused where torch has such a kernel, and timm's for what torch lacks. Where nothing is fused, both take
their multi-tensor ("foreach") path on a GPU by themselves.
"""

from collections.abc import Callable
from typing import Any

from torch import nn, optim

from penstock.model.config import OptimizerConfig

Group = dict[str, Any]  # a parameter group, or keyword arguments of an optimizer, as torch and timm take them


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


def _given(config: OptimizerConfig, *names: str) -> Group:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _fused(groups: list[Group], config: OptimizerConfig, devices: tuple[str, ...] = ("cpu", "cuda")) -> bool:
    if config.fused is not None:
        return config.fused
    return all(p.device.type in devices and p.is_floating_point() for g in groups for p in g["params"])


def _adapted(groups: list[Group]) -> list[Group]:
    """Weights get a layer-wise lr even where they do not decay, which timm would take for a sign not to."""
    return [group | {"always_adapt": group["params"][0].ndim >= 2} for group in groups]
