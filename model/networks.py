"""Networks by name: `ModelConfig` → `nn.Module` that maps images (N, 3, S, S) to logits (N, num_classes).

These are all classification networks of torchvision and timm, and our own for small images. torchvision's and timm's
keep their parameter names, so that state dicts are interchangeable. A new network is one entry in `OWN_NETWORKS` and a
name in `model/names.py`. timm's are in `model/timm_networks.py`.
"""

import inspect
from collections.abc import Callable, Collection

import torchvision
from torch import nn

from penstock.model.airbench import AIRBENCHES
from penstock.model.blurpool import MIN_CHANNELS, use_blurpool
from penstock.model.cifar_resnet import CIFAR_RESNETS
from penstock.model.config import ModelConfig
from penstock.model.layout import use_channels_last
from penstock.model.names import TIMM, lacks, unknown_network
from penstock.model.stochastic_depth import add_stochastic_depth, rescale_stochastic_depth

# name → factory(num_classes, …), which may accept zero_init_residual, stochastic_depth and dropout
OWN_NETWORKS: dict[str, Callable[..., nn.Module]] = {**AIRBENCHES, **CIFAR_RESNETS}

# With auxiliary heads these return a named tuple in training, the main logits first.
AUXILIARY_HEADS = ("googlenet", "inception_v3")


def list_networks() -> list[str]:
    """All names that `build_model` accepts, sorted, except timm's; `timm.list_models()` lists those."""
    return sorted([*OWN_NETWORKS, *torchvision.models.list_models(module=torchvision.models)])


def build_model(config: ModelConfig, num_classes: int, image_size: int | None = None) -> nn.Module:
    """A freshly initialised network on the CPU in float32: (N, 3, S, S) → logits (N, num_classes).

    With `aux_logits` the network returns torchvision's named tuple of logits in training, the main head's first.
    GoogLeNet and Inception v3 expect images normalised as for all networks, and scale them to [−1, 1] themselves, as
    their published weights require. The caller applies `pretrained`, `compile` and `sync_batch_norm`.

    `image_size`: the size for which to build a timm network that accepts only one size (a vision transformer); None for
    its published size. Such a network, also torchvision's, has the size as its attribute `image_size`.

    Raises ValueError for an unknown name (with the nearest names), fewer than one class, or an option that the network
    does not support.
    """
    name = config.name
    if not name.startswith(TIMM) and name not in list_networks():
        raise unknown_network(name, list_networks())
    if num_classes < 1:
        raise ValueError(f"a network needs at least 1 class, not {num_classes}")

    if name.startswith(TIMM):
        from penstock.model.timm_networks import build_timm_network  # here: timm takes seconds

        net = build_timm_network(config, num_classes, image_size)
    elif name in OWN_NETWORKS:
        net = OWN_NETWORKS[name](num_classes, **_own_options(config))
    else:
        options = _torchvision_options(config)
        net = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    _alter(net, config)
    return use_channels_last(net) if config.channels_last else net


def _own_options(config: ModelConfig) -> dict[str, object]:
    """The keywords for the factory of one of our own networks."""
    accepted = inspect.signature(OWN_NETWORKS[config.name]).parameters
    for option in ("stochastic_depth", "dropout"):
        if getattr(config, option) is not None and option not in accepted:
            raise lacks(config.name, option)
    if config.aux_logits:
        raise lacks(config.name, "aux_logits")
    wanted = {
        "zero_init_residual": _zero_init_residual(config, accepted),
        "stochastic_depth": config.stochastic_depth,
        "dropout": config.dropout,
    }
    return {option: value for option, value in wanted.items() if value is not None}


def _torchvision_options(config: ModelConfig) -> dict[str, object]:
    """The keywords for torchvision's builder. The class in its return annotation shows which ones it accepts."""
    builder = torchvision.models.get_model_builder(config.name)
    accepted = inspect.signature(inspect.signature(builder).return_annotation.__init__).parameters
    options: dict[str, object] = {}
    zero_init_residual = _zero_init_residual(config, accepted)
    if zero_init_residual is not None:
        options["zero_init_residual"] = zero_init_residual
    if config.dropout is not None:
        names = [name for name in ("dropout", "drop_rate") if name in accepted]  # drop_rate is DenseNet's
        if not names:
            raise lacks(config.name, "dropout")
        options[names[0]] = config.dropout
    if config.stochastic_depth is not None and _family(config) in ("convnext", "efficientnet"):
        options["stochastic_depth_prob"] = config.stochastic_depth
    if config.name in AUXILIARY_HEADS:
        options.update(aux_logits=config.aux_logits, init_weights=True, transform_input=True)
    elif config.aux_logits:
        raise lacks(config.name, "aux_logits")
    return options


def _alter(net: nn.Module, config: ModelConfig) -> None:
    """Apply the options that no constructor has: small stem, stochastic depth, blur."""
    family = _family(config)
    if config.stem == "small":
        if family != "resnet":
            raise lacks(config.name, "stem = small", "that is for torchvision's ResNets, ResNeXts and Wide ResNets")
        _use_small_stem(net)
    if config.stochastic_depth is not None:
        if family == "resnet":
            add_stochastic_depth(net, config.stochastic_depth)
        elif family in ("swin_transformer", "maxvit"):  # their builders refuse the keyword
            rescale_stochastic_depth(net, config.stochastic_depth)
        elif family not in ("own", "timm", "convnext", "efficientnet"):
            raise lacks(config.name, "stochastic_depth")
    if config.blurpool and not use_blurpool(net):
        raise lacks(config.name, "blurpool", f"it has no strided convolution with {MIN_CHANNELS} channels or more")


def _family(config: ModelConfig) -> str:
    """The module of torchvision.models with the network, or "own", or "timm"."""
    if config.name.startswith(TIMM):
        return "timm"
    if config.name in OWN_NETWORKS:
        return "own"
    module: str = torchvision.models.get_model_builder(config.name).__module__
    return module.rpartition(".")[2]


def _zero_init_residual(config: ModelConfig, accepted: Collection[str]) -> bool | None:
    if "zero_init_residual" in accepted:
        return config.zero_init_residual is not False
    if config.zero_init_residual:
        raise lacks(config.name, "zero_init_residual")
    return None


def _use_small_stem(net: nn.Module) -> None:
    """Replace 7×7 stride 2 + max-pool (÷ 4) by 3×3 stride 1 (÷ 1), initialised as torchvision does the original."""
    assert isinstance(net.conv1, nn.Conv2d)
    conv = nn.Conv2d(3, net.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = conv
    net.maxpool = nn.Identity()
