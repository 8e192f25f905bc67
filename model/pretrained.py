"""Weights to start from: a network and `ModelConfig.pretrained` → the network with them, and one line that says so.

A source is a file (a checkpoint of this program, a torch state dict, a .safetensors file) or the name of weights that
torchvision publishes for the network (`DEFAULT`, `IMAGENET1K_V2` …), which torch.hub downloads once and keeps. For
another number of classes the body is kept and the head starts anew. Nothing in a file can run: `weights_only=True`.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from model.config import ModelConfig
from model.networks import OWN_NETWORKS

CHECKPOINT_FORMAT = "penstock-checkpoint-1"
# Under one of these keys other programs (torchvision's references, timm, Lightning) keep the state dict.
NESTED_UNDER = ("model", "state_dict")
AUXILIARY_PREFIXES = ("AuxLogits.", "aux1.", "aux2.")  # children of torchvision's Inception v3 and GoogLeNet
# What DDP and torch.compile put before a name; and names in torchvision's published files that its code has changed
# since (torchvision.models.densenet._load_state_dict, vision_transformer.MLPBlock._load_from_state_dict).
RENAMED = (
    (re.compile(r"^((module|_orig_mod)\.)+"), ""),
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


def load_pretrained(net: nn.Module, config: ModelConfig) -> str:
    """Load `config.pretrained` into `net`, which `build_model(config, …)` made, and say in one line what was loaded.

    A head (the last linear layer or 1×1 convolution, of the network and of each auxiliary classifier) with another
    number of classes than the source's keeps its fresh initialisation, as do auxiliary classifiers that the source
    lacks; those that `net` lacks are left out. Every other tensor must be there, and fit.

    Raises ValueError where the source is neither a file nor weights of this network, cannot be downloaded or read, or
    does not fit, naming the first few tensors.
    """
    origin, weights = _read(config)
    weights = {_own_name(name): tensor for name, tensor in weights.items()}
    state = dict(net.state_dict())
    notes = []
    for prefix, head in _heads(net).items():
        theirs, ours = weights.get(f"{head}.weight"), state[f"{head}.weight"]
        if theirs is None and prefix:
            notes.append(f"{prefix[:-1]} starts anew, they have none")
            weights |= {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        elif isinstance(theirs, Tensor) and theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours):
            notes.append(f"{head} starts anew, {len(theirs)} → {len(ours)} classes")
            weights |= {name: tensor for name, tensor in state.items() if name.startswith(f"{head}.")}
    for prefix in AUXILIARY_PREFIXES:
        if not any(name.startswith(prefix) for name in state) and any(name.startswith(prefix) for name in weights):
            notes.append(f"{prefix[:-1]} is left out")
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for name, tensor in state.items():  # files of 2018 and before do not count batches
        if name.endswith(".num_batches_tracked"):
            weights.setdefault(name, tensor)
    _require_fit(weights, state, f"pretrained = {config.pretrained}: not weights of this {config.name}")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(weights[name])
    return "; ".join([f"pretrained weights: {origin}", *notes])


def _read(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where the weights come from, in words, and what is there."""
    source = config.pretrained
    published: dict[str, Any] = {}
    if config.name not in OWN_NETWORKS:
        published = dict(torchvision.models.get_model_weights(config.name).__members__)
    name = source.rpartition(".")[2]  # also ResNet50_Weights.IMAGENET1K_V2
    if name in published and source in (name, f"{type(published[name]).__name__}.{name}"):
        return str(published[name]), _download(published[name], source)
    path = Path(source)
    if path.is_file():
        return _read_file(path)
    if not published:
        raise ValueError(f"pretrained = {source}: no such file; torchvision publishes no weights of {config.name}")
    raise ValueError(
        f"pretrained = {source}: neither a file nor one of torchvision's weights of {config.name} "
        f"({', '.join(published)})"
    )


def _download(published: Any, source: str) -> dict[str, Any]:
    advice = f"download {published.url} elsewhere and give the file's path"
    try:
        weights: dict[str, Any] = published.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise ValueError(f"pretrained = {source}: no download ({getattr(error, 'reason', error)}): {advice}") from None
    except Exception as error:  # torch raises many kinds for a damaged file, RuntimeError for a wrong hash
        raise ValueError(f"pretrained = {source}: {_first_line(error)}: empty torch.hub's cache, or {advice}") from None
    return weights


def _read_file(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return str(path), dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds, by the byte at which a file breaks
        raise ValueError(f"{path}: cannot be read as weights: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    if content.get("format") == CHECKPOINT_FORMAT:
        state = content["state"]
        average = state.get("ema")
        return (f"{path} (moving average)", average) if average is not None else (str(path), state["net"])
    for key in NESTED_UNDER:
        if isinstance(content.get(key), dict):
            return f"{path} ({key})", content[key]
    return str(path), content


def _own_name(name: str) -> str:
    """A tensor's name in the bare network, as torchvision's code has it today."""
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _heads(net: nn.Module) -> dict[str, str]:
    """The last linear layer or convolution of each classifier: "" → that of the network, "aux1." → "aux1.fc2" …"""
    heads = {}
    for prefix in ("", *AUXILIARY_PREFIXES):
        layers = [
            name
            for name, module in net.named_modules()
            if name.startswith(prefix) and isinstance(module, nn.Linear | nn.Conv2d)
        ]
        if layers:
            heads[prefix] = layers[-1]
    return heads


def _require_fit(weights: dict[str, Any], state: dict[str, Tensor], where: str) -> None:
    """Raise ValueError unless the names and shapes are the same."""
    faults = [f"{name} is missing" for name in state if name not in weights]
    faults += [f"{name} is too many" for name in weights if name not in state]
    for name, ours in state.items():
        theirs = weights.get(name, ours)
        if not isinstance(theirs, Tensor):
            faults.append(f"{name} is no tensor")
        elif theirs.shape != ours.shape:
            faults.append(f"{name} is {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{where}: {'; '.join(faults[:3])}{more}")


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to allow code to run
        return "it holds more than tensors and plain values, or is no torch file"
    return str(error).strip().partition("\n")[0] or type(error).__name__
