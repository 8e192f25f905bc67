"""Networks by name: `ModelConfig` → `nn.Module` that maps images (N, 3, S, S) to logits (N, num_classes).

Every classification network of torchvision with torchvision's own parameter names, so that state dicts are
interchangeable, and the CIFAR ResNets. A new network is one entry in `OWN_NETWORKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
import torchvision
from torch import nn

from model.cifar_resnet import CIFAR_RESNETS

Stem = Literal["imagenet", "small"]

# name → factory(num_classes, zero_init_residual=…)
OWN_NETWORKS: dict[str, Callable[..., nn.Module]] = {**CIFAR_RESNETS}

# Their auxiliary heads make forward return a tuple in training; without them it is one tensor in both modes.
_AUXILIARY_HEADS = ("googlenet", "inception_v3")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and how it runs.

    stem: `imagenet` is the network as published; `small` gives a ResNet a 3×3 stride-1 stem without max-pooling.
    zero_init_residual: start residual branches at zero (Goyal et al. 2017, section 5.1); unset means wherever the
    network has the option.
    compile, channels_last: `torch.compile` the model; keep weights and activations in NHWC order.
    """

    name: str = "resnet50"
    stem: Stem = "imagenet"
    zero_init_residual: bool | None = None
    compile: bool = False
    channels_last: bool = True


def list_networks() -> list[str]:
    """All names that `build_model` knows, sorted."""
    return sorted([*OWN_NETWORKS, *torchvision.models.list_models(module=torchvision.models)])


def build_model(
    name: str,
    num_classes: int,
    *,
    stem: Stem = "imagenet",
    zero_init_residual: bool | None = None,
    channels_last: bool = True,
) -> nn.Module:
    """A freshly initialised network on the CPU in float32; the arguments are those of `ModelConfig`.

    GoogLeNet and Inception v3 are built without their auxiliary heads.

    Raises ValueError for an unknown name (naming the nearest ones), fewer than one class, and an option that the
    network does not have.
    """
    if name not in list_networks():
        near = get_close_matches(name, list_networks(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "model.networks.list_networks() has the names"
        raise ValueError(f"unknown network {name!r}: {hint}")
    if num_classes < 1:
        raise ValueError(f"a network needs at least 1 class, not {num_classes}")
    if stem not in ("imagenet", "small"):
        raise ValueError(f"unknown stem {stem!r}: imagenet or small")
    if stem == "small" and not _is_torchvision_resnet(name):
        raise ValueError(
            f"{name} has no small stem: that is an option of torchvision's ResNets, ResNeXts and Wide ResNets"
        )
    has_zero_init = name in OWN_NETWORKS or _is_torchvision_resnet(name)
    if zero_init_residual and not has_zero_init:
        raise ValueError(f"{name} has no zero_init_residual: leave it out")

    options: dict[str, Any] = {}
    if has_zero_init:
        options["zero_init_residual"] = zero_init_residual is not False
    if name in _AUXILIARY_HEADS:
        options.update(aux_logits=False, init_weights=True)
    if name in OWN_NETWORKS:
        model = OWN_NETWORKS[name](num_classes, **options)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if stem == "small":
        _use_small_stem(model)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def _is_torchvision_resnet(name: str) -> bool:
    if name in OWN_NETWORKS:
        return False
    return torchvision.models.get_model_builder(name).__module__ == "torchvision.models.resnet"


def _use_small_stem(model: nn.Module) -> None:
    """Replace 7×7 stride 2 + max-pool (÷ 4) by 3×3 stride 1 (÷ 1), initialised as torchvision does the original."""
    conv = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False)  # type: ignore
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = conv
    model.maxpool = nn.Identity()
