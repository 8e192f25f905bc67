"""Weights to start from: a network and `ModelConfig.pretrained` → the network with them, and one line that says so.

`model.weight_files` reads them. For other classes the body is kept and the head starts anew.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from penstock.model.config import ModelConfig
from penstock.model.heads import AUXILIARY_PREFIXES, heads_of
from penstock.model.names import TIMM
from penstock.model.weight_files import Classes, Source, read_weights

# What DDP and torch.compile put before a name; and names in torchvision's published files that its code has changed
# since (torchvision.models.densenet._load_state_dict, vision_transformer.MLPBlock._load_from_state_dict).
RENAMED = (
    (re.compile(r"^((module|_orig_mod)\.)+"), ""),
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


Weights = dict[str, object]  # of a file, by name: tensors, unless it is another kind of file


class Rows(NamedTuple):
    """Which rows of a source's head are the network's classes, in their order; None for a class that it lacks.
    assumed: what is taken for granted in that, in words."""

    labels: Sequence[int | None]
    assumed: str = ""


class Known(NamedTuple):
    """What is known of a source's classes: how many it lists (0: it does not say), which of its rows are the network's,
    and whether somebody was asked for them."""

    num_classes: int
    rows: Rows | None
    asked: bool


def load_pretrained(net: nn.Module, config: ModelConfig, rows_of: Callable[[Classes], Rows] | None = None) -> str:
    """Load `config.pretrained` into `net`, which `build_model(config, …)` made, and say in one line what was loaded.

    Raises ValueError where the source is neither a file nor weights of this network, cannot be downloaded or read, and
    what `load_source` does.
    """
    return load_source(net, read_weights(config, getattr(net, "image_size", None)), config, rows_of)


def load_source(
    net: nn.Module,
    source: Source,
    config: ModelConfig,
    rows_of: Callable[[Classes], Rows] | None = None,
    *,
    whole: bool = False,
) -> str:
    """`load_pretrained` of what was read.

    A head is the last linear layer or 1×1 convolution, of the network and of each auxiliary classifier; timm's networks
    say which it is. Where the source says which classes its rows are (a checkpoint or an export of this program,
    torchvision's or timm's weights), `rows_of` tells which of them are the network's: if they are all there, their rows
    are taken, in the network's order; else the head keeps its fresh initialisation. Where the source does not say, as
    many rows are taken to be the same classes.

    Heads that the source lacks start anew, auxiliary ones that `net` lacks are left out. Every other tensor must be
    there, and fit; a name that all of the network's share at their begin (Lightning's `model.`) does not count.

    Raises ValueError where the source has several networks, or does not fit, naming the first few tensors; and where
    the weights must be there `whole`, if the head would start anew.
    """
    origin, weights, classes, _ = source
    where = f"pretrained = {config.pretrained}: not weights of this {config.name}"
    state = dict(net.state_dict())
    weights = {_own_name(name): tensor for name, tensor in weights.items()}
    if config.name.startswith(TIMM):
        from penstock.model.timm_networks import converted

        weights = dict(converted(config, net, weights))
    weights, notes = _unwrapped(weights, state, where)
    rows = rows_of(classes) if rows_of and classes else None
    known = Known(len(classes or ()), rows, asked=rows_of is not None)
    for prefix, head in heads_of(net).items():
        tensors, note = _fitted_head(prefix, head, weights, state, known)
        if whole and " starts anew" in note:
            without = note.replace(" starts anew", "")
            raise ValueError(f"pretrained = {config.pretrained}: its head is of other classes ({without})")
        weights |= tensors
        notes.append(note)
    for prefix in AUXILIARY_PREFIXES:
        if not any(name.startswith(prefix) for name in state) and any(name.startswith(prefix) for name in weights):
            notes.append(f"{prefix[:-1]} is left out")
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for name, tensor in state.items():  # files of 2018 and before do not count batches
        if name.endswith(".num_batches_tracked"):
            weights.setdefault(name, tensor)
    fitting = _require_fit(weights, state, where)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(fitting[name])
    return "; ".join([f"pretrained weights: {origin}", *filter(None, notes)])


def _fitted_head(
    prefix: str, head: str, weights: Weights, state: dict[str, Tensor], known: Known
) -> tuple[Weights, str]:
    """The tensors of one head as the network takes them, and what to say of it, "" for nothing.

    None of them where they are of another kind, which `_require_fit` tells.
    """
    theirs, ours = weights.get(f"{head}.weight"), state[f"{head}.weight"]
    if theirs is None and (prefix or f"{head}.bias" not in weights):
        fresh: Weights = {name: tensor for name, tensor in state.items() if name.startswith(prefix or f"{head}.")}
        return fresh, f"{prefix[:-1] or head} starts anew, they have none"
    if not isinstance(theirs, Tensor) or theirs.ndim < 2 or theirs.shape[1:] != ours.shape[1:]:
        return {}, ""
    rows = known.rows if known.num_classes == len(theirs) else None
    kept, note = _kept_rows(rows, len(theirs), len(ours))
    if known.asked and rows is None and kept:
        note = f"is kept, as if its {len(theirs)} classes, which are not named there, were the dataset's, in order"
    if note:
        note = f"{head} {note}"
    return _head_weights(head, weights, state, kept), note


def _kept_rows(rows: Rows | None, num_theirs: int, num_ours: int) -> tuple[list[int] | None, str]:
    """Which of a source's rows make the head, None for one that starts anew; and what to say of it.

    rows: None where nothing is known of the classes but how many there are.
    """
    every = list(range(num_theirs))
    anew = f"starts anew, {num_theirs} → {num_ours} classes"
    if rows is None:
        return (every, "") if num_theirs == num_ours else (None, anew)
    found = [label for label in rows.labels if label is not None]
    if len(found) < num_ours:
        known = f"only {len(found)}" if found else "none"
        return None, f"{anew}, {known} of which it knows"
    notes = ["keeps the rows of the dataset's classes"]
    if num_theirs > num_ours:
        notes.append(f"{num_ours} of {num_theirs}")
    elif found != every:
        notes.append("which has them in another order")
    elif not rows.assumed:
        return found, ""
    if rows.assumed:
        notes.append(rows.assumed)
    return found, ", ".join(notes)


def _head_weights(head: str, weights: Weights, state: dict[str, Tensor], kept: list[int] | None) -> Weights:
    """The head's tensors: the `kept` rows of `weights`, or those of `state` where it starts anew."""
    names = (f"{head}.weight", f"{head}.bias")
    if kept is None:
        return {name: state[name] for name in names if name in state}
    weight = weights[names[0]]
    assert isinstance(weight, Tensor)
    tensors = {name: weights[name] for name in names if name in weights}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.shape[:1] == weight.shape[:1]:
            tensors[name] = tensor[kept]
    return tensors


def _own_name(name: str) -> str:
    """A tensor's name in the bare network, as torchvision's code has it today."""
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _unwrapped(weights: Weights, state: dict[str, Tensor], where: str) -> tuple[Weights, list[str]]:
    """The weights by their names in the network, without what a module around it puts before them; and what to say.

    Raises ValueError where there are several networks, or nothing of this one.
    """
    if any(name in weights for name in state):
        return weights, []
    first = next(iter(state))
    around = {name.removesuffix(first) for name in weights if name.endswith(f".{first}")}
    found = [prefix for prefix in sorted(around) if 2 * sum(prefix + name in weights for name in state) > len(state)]
    if len(found) > 1:
        raise ValueError(f"{where} alone: it has several networks, {', '.join(found)}; save the state dict of one")
    if not found:
        raise ValueError(f"{where}: it has {', '.join(list(weights)[:3]) or 'nothing'}; the network {first} …")
    prefix = found[0]
    inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    note, left_out = f"those of its {prefix[:-1]}", len(weights) - len(inside)
    if left_out:
        note += f", {left_out} other tensors left out"
    return inside, [note]


def _require_fit(weights: Weights, state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The weights, which have the names and shapes of `state`; raises ValueError unless they do."""
    faults = [f"{name} is missing" for name in state if name not in weights]
    faults += [f"{name} is too many" for name in weights if name not in state]
    fitting = {}
    for name, ours in state.items():
        theirs = weights.get(name, ours)
        if not isinstance(theirs, Tensor):
            faults.append(f"{name} is no tensor")
        elif theirs.shape != ours.shape:
            faults.append(f"{name} is {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
        elif ours.is_floating_point() and not theirs.is_floating_point():
            faults.append(f"{name} is of whole numbers ({theirs.dtype}), as of a quantized network")
        else:
            fitting[name] = theirs
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{where}: {'; '.join(faults[:3])}{more}")
    return fitting
