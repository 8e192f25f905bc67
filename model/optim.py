"""Optimizers by name: `OptimizerConfig` and a model → `torch.optim.Optimizer`. A new one is an entry in `OPTIMIZERS`.

They are torch's, fused if torch has such a kernel, and timm's for those that torch lacks. On a GPU, an optimizer that
is not fused uses its multi-tensor ("foreach") path.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase as fnmatch
from typing import Any

from torch import nn, optim

from penstock.model.config import OptimizerConfig
from penstock.model.heads import heads_of

Group = dict[str, Any]  # a parameter group, or keyword arguments of an optimizer, as torch and timm take them
TOKENS = ("class_token", "pos_embedding", "relative_position_bias_table")  # of torchvision's ViT, Swin and MaxViT


def param_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Parameter groups of an optimizer: weights (ndim ≥ 2) with `weight_decay`; the weights that the network exempts,
    and norms and biases (ndim ≤ 1), without it.

    Except for `exempt`, the dimension decides, not the name (He et al. 2018, "Bag of Tricks", section 3.1). Each
    trainable parameter is in exactly one group, a shared one once. Frozen parameters are in none. Empty groups are
    omitted.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    without = exempt(model, [name for name, p in named if p.ndim >= 2])
    groups = [
        {"params": [p for name, p in named if p.ndim >= 2 and name not in without], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in without], "weight_decay": 0.0},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def exempt(model: nn.Module, names: list[str]) -> set[str]:
    """The parameters of `names` that do not decay in this network: positions, class tokens and the like.

    timm's networks name them, or patterns of them (`no_weight_decay`). In torchvision's transformers they are `TOKENS`,
    as in torchvision's own recipes (`--transformer-embedding-decay 0` of its references).
    """
    if hasattr(model, "no_weight_decay"):
        theirs: Any = model
        patterns = list(theirs.no_weight_decay())
        return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
    return {name for name in names if name.rpartition(".")[2] in TOKENS}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """The optimizer that `config` names, over `param_groups(model)`. `set_lr` applies the schedule's learning rate.

    Raises ValueError for a model without trainable parameters.
    """
    groups = param_groups(model, config.weight_decay)
    if not groups:
        raise ValueError("the model has no trainable parameters")
    for group in groups:
        group["lr_scale"] = config.bias_lr_scale if group["params"][0].ndim <= 1 else 1.0
    if config.name == "muon":
        groups = _with_fallback(model, groups, config.fallback_lr_scale)
    optimizer = OPTIMIZERS[config.name](groups, config)
    set_lr(optimizer, config.lr)
    return optimizer


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the weights to `lr`. Norms and biases, and the parameters that AdamW trains under Muon,
    get their multiples of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # states of earlier versions have no lr_scale


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

    # train.clip_grad_norm clips gradients for every optimizer, so this one does not clip again.
    return Lamb(_adapted(groups), config.lr, max_grad_norm=None, **_given(config, "betas", "eps"))


def _muon(groups: list[Group], config: OptimizerConfig) -> optim.Optimizer:
    from timm.optim import Muon

    own: Group = {"momentum": config.momentum, "nesterov": config.nesterov, "adjust_lr_fn": config.adjust_lr}
    steps: Group = {"ns_steps": config.ns_steps, "ns_coefficients": config.ns_coefficients}
    return Muon(groups, config.lr, **own, **steps, **_given(config, "betas", "eps"))


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
    "muon": _muon,
}


def _with_fallback(model: nn.Module, groups: list[Group], lr_scale: float) -> list[Group]:
    """Split the groups into those that Muon trains and those that its AdamW trains, at `lr_scale` times the learning
    rate.

    Muon trains the weights inside the network that timm considers suitable: matrices, and kernels as matrices, with at
    least 4 rows and columns. It does not train depthwise kernels, heads and parameters that `exempt` names.
    """
    from timm.optim.muon import _is_suitable_for_muon

    parameters = dict(model.named_parameters())
    outside = {id(parameters[f"{head}.weight"]) for head in heads_of(model).values()}
    outside |= {id(parameters[name]) for name in exempt(model, [name for name, p in parameters.items() if p.ndim >= 2])}
    parted = []
    for group in groups:
        fit = [id(p) not in outside and bool(_is_suitable_for_muon(p)) for p in group["params"]]
        for is_inside in sorted(set(fit), reverse=True):
            params = [p for p, one in zip(group["params"], fit, strict=True) if one is is_inside]
            scale = group["lr_scale"] * (1.0 if is_inside else lr_scale)
            parted.append(group | {"params": params, "use_fallback": not is_inside, "lr_scale": scale})
    return parted


def _given(config: OptimizerConfig, *names: str) -> Group:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _fused(groups: list[Group], config: OptimizerConfig, devices: tuple[str, ...] = ("cpu", "cuda")) -> bool:
    if config.fused is not None:
        return config.fused
    return all(p.device.type in devices and p.is_floating_point() for g in groups for p in g["params"])


def _adapted(groups: list[Group]) -> list[Group]:
    """Give weights a layer-wise lr even if they do not decay; timm would otherwise skip these."""
    return [group | {"always_adapt": group["params"][0].ndim >= 2} for group in groups]
