"""Find the heads of a network: the last layer of each of its classifiers."""

from typing import Any

from torch import nn

AUXILIARY_PREFIXES = ("AuxLogits.", "aux1.", "aux2.")  # children of torchvision's Inception v3 and GoogLeNet


def heads_of(net: nn.Module) -> dict[str, str]:
    """The name of the last linear layer or convolution of each classifier, by the prefix of the classifier's tensors.

    The main classifier has the prefix "". For example: "" → "fc", "aux1." → "aux1.fc2". timm's networks name their own
    heads (`get_classifier`).
    """
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    timms: Any = net
    if hasattr(timms, "get_classifier"):
        found = timms.get_classifier()
        parts = found if isinstance(found, tuple | list) else [found]
        inside = {id(module) for part in parts for module in part.modules()}
        names = [name for name, layer in layers.items() if id(layer) in inside and _outputs(layer) == timms.num_classes]
        return {f"{name}." if place else "": name for place, name in enumerate(names)}
    heads = {}
    for prefix in ("", *AUXILIARY_PREFIXES):
        names = [name for name in layers if name.startswith(prefix)]
        if names:
            heads[prefix] = names[-1]
    return heads


def _outputs(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
