"""Optimizers by name: `OptimizerConfig` and a model → `torch.optim.Optimizer`. One entry in `OPTIMIZERS` each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn, optim


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """lr: the base learning rate of a step, as it is: nothing scales it by the batch size.

    weight_decay: on weights of two or more dimensions; norms and biases have none.
    fused: one kernel for all parameters; unset means where torch has one for the device (CPU and CUDA do).
    """

    name: Literal["sgd"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-5
    fused: bool | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set nesterov = false")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be 0 or more, not {self.weight_decay}")


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
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
    """The optimizer that `config` names over `param_groups(model)`; its `lr` is `config.lr` until a schedule sets it.

    Raises ValueError for an unknown name and for a model without trainable parameters.
    """
    if config.name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {config.name!r}: {', '.join(OPTIMIZERS)}")
    groups = param_groups(model, config.weight_decay)
    if not groups:
        raise ValueError("the model has no trainable parameters")
    return OPTIMIZERS[config.name](groups, config)


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig) -> optim.Optimizer:
    fused = config.fused
    if fused is None:
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"])
    return optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], optim.Optimizer]] = {"sgd": _sgd}
