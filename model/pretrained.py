"""Weights to start from: a network and `ModelConfig.pretrained` → the network with them, and one line that says so.

`model.weight_files` reads them. For other classes the body is kept and the head starts anew.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.weight_files import Classes, read_weights

AUXILIARY_PREFIXES = ("AuxLogits.", "aux1.", "aux2.")  # children of torchvision's Inception v3 and GoogLeNet
# What DDP and torch.compile put before a name; and names in torchvision's published files that its code has changed
# since (torchvision.models.densenet._load_state_dict, vision_transformer.MLPBlock._load_from_state_dict).
RENAMED = (
    (re.compile(r"^((module|_orig_mod)\.)+"), ""),
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


class Rows(NamedTuple):
    """Which rows of a source's head are the network's classes, in their order; None for a class that it lacks.
    assumed: what is taken for granted in that, in words."""

    labels: Sequence[int | None]
    assumed: str = ""


def load_pretrained(net: nn.Module, config: ModelConfig, rows_of: Callable[[Classes], Rows] | None = None) -> str:
    """Load `config.pretrained` into `net`, which `build_model(config, …)` made, and say in one line what was loaded.

    A head is the last linear layer or 1×1 convolution, of the network and of each auxiliary classifier. Where the
    source says which classes its rows are (a checkpoint or an export of this program, torchvision's weights),
    `rows_of` tells which of them are the network's: if they are all there, their rows are taken, in the network's
    order; else the head keeps its fresh initialisation. Where the source does not say, as many rows are taken to be
    the same classes.

    Heads that the source lacks start anew, auxiliary ones that `net` lacks are left out. Every other tensor must be
    there, and fit; a name that all of the network's share at their begin (Lightning's `model.`) does not count.

    Raises ValueError where the source is neither a file nor weights of this network, cannot be downloaded or read,
    has several networks, or does not fit, naming the first few tensors.
    """
    origin, weights, classes = read_weights(config)
    where = f"pretrained = {config.pretrained}: not weights of this {config.name}"
    state = dict(net.state_dict())
    weights, notes = _unwrapped({_own_name(name): tensor for name, tensor in weights.items()}, state, where)
    rows = rows_of(classes) if rows_of and classes else None
    for prefix, head in _heads(net).items():
        theirs, ours = weights.get(f"{head}.weight"), state[f"{head}.weight"]
        if theirs is None and (prefix or f"{head}.bias" not in weights):
            notes.append(f"{prefix[:-1] or head} starts anew, they have none")
            weights |= {name: tensor for name, tensor in state.items() if name.startswith(prefix or f"{head}.")}
        elif isinstance(theirs, Tensor) and theirs.ndim > 1 and theirs.shape[1:] == ours.shape[1:]:
            known = rows if classes and len(classes) == len(theirs) else None
            kept, note = _kept_rows(known, len(theirs), len(ours))
            if rows_of and not known and kept:
                note = (
                    f"is kept, as if its {len(theirs)} classes, which are not named there, were the dataset's, in order"
                )
            if note:
                notes.append(f"{head} {note}")
            weights |= _head_weights(head, weights, state, kept)
    for prefix in AUXILIARY_PREFIXES:
        if not any(name.startswith(prefix) for name in state) and any(name.startswith(prefix) for name in weights):
            notes.append(f"{prefix[:-1]} is left out")
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for name, tensor in state.items():  # files of 2018 and before do not count batches
        if name.endswith(".num_batches_tracked"):
            weights.setdefault(name, tensor)
    _require_fit(weights, state, where)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(weights[name])
    return "; ".join([f"pretrained weights: {origin}", *notes])


def _kept_rows(rows: Rows | None, num_theirs: int, num_ours: int) -> tuple[list[int] | None, str]:
    """Which of a source's rows make the head, None for one that starts anew; and what to say of it.

    rows: None where nothing is known of the classes but how many there are.
    """
    every = [*range(num_theirs)]
    if rows is None:
        return (every, "") if num_theirs == num_ours else (None, f"starts anew, {num_theirs} → {num_ours} classes")
    found = [label for label in rows.labels if label is not None]
    if len(found) < num_ours:
        known = f"only {len(found)}" if found else "none"
        return None, f"starts anew, {num_theirs} → {num_ours} classes, {known} of which it knows"
    note = "keeps the rows of the dataset's classes"
    if num_theirs > num_ours:
        note += f", {num_ours} of {num_theirs}"
    elif found != every:
        note += ", which has them in another order"
    elif not rows.assumed:
        return found, ""
    return found, f"{note}{rows.assumed and ', '}{rows.assumed}"


def _head_weights(
    head: str, weights: dict[str, Any], state: dict[str, Tensor], kept: list[int] | None
) -> dict[str, Any]:
    """The head's tensors: the `kept` rows of `weights`, or those of `state` where it starts anew."""
    names = [name for name in (f"{head}.weight", f"{head}.bias") if name in (state if kept is None else weights)]
    if kept is None:
        return {name: state[name] for name in names}
    rows = len(weights[f"{head}.weight"])
    return {
        name: tensor[kept] if isinstance(tensor := weights[name], Tensor) and tensor.shape[:1] == (rows,) else tensor
        for name in names
    }


def _own_name(name: str) -> str:
    """A tensor's name in the bare network, as torchvision's code has it today."""
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _unwrapped(weights: dict[str, Any], state: dict[str, Tensor], where: str) -> tuple[dict[str, Any], list[str]]:
    """The weights by their names in the network, without what a module around it puts before them; and what to say.

    Raises ValueError where there are several networks, or nothing of this one.
    """
    shared = [name for name in state if name in weights]
    first = next(iter(state))
    around = {name.removesuffix(first) for name in weights if name.endswith(f".{first}")} if not shared else set()
    found = [prefix for prefix in sorted(around) if 2 * sum(prefix + name in weights for name in state) > len(state)]
    if len(found) > 1:
        raise ValueError(f"{where} alone: it has several networks, {', '.join(found)}; save the state dict of one")
    if not found and not shared:
        raise ValueError(f"{where}: it has {', '.join(list(weights)[:3]) or 'nothing'}; the network {first} …")
    if shared:
        return weights, []
    inside = {name.removeprefix(found[0]): tensor for name, tensor in weights.items() if name.startswith(found[0])}
    left_out = len(weights) - len(inside)
    return inside, [f"those of its {found[0][:-1]}" + (f", {left_out} other tensors left out" if left_out else "")]


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
        elif ours.is_floating_point() and not theirs.is_floating_point():
            faults.append(f"{name} is of whole numbers ({theirs.dtype}), as of a quantized network")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{where}: {'; '.join(faults[:3])}{more}")
