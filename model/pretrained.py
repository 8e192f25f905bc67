"""Load pretrained weights: a network and `ModelConfig.pretrained` → the network with the weights, and a line about it.

`model.weight_files` reads the weights. If their classes are not the dataset's, the head is reinitialised.
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

# Prefixes that DDP and torch.compile add; and names in torchvision's published files that its code has since changed
# (torchvision.models.densenet._load_state_dict, vision_transformer.MLPBlock._load_from_state_dict).
RENAMED = (
    (re.compile(r"^((module|_orig_mod)\.)+"), ""),
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


Weights = dict[str, object]  # contents of a file by name: tensors, unless it is another kind of file


class Rows(NamedTuple):
    """The row of a source's head for each class of the network, in the network's order; None for a missing class.
    assumed: the assumption behind this, in words."""

    labels: Sequence[int | None]
    assumed: str = ""


class Known(NamedTuple):
    """What is known about a source's classes. num_classes: the number that it lists, 0 if it lists none. rows: its rows
    for the network's classes. asked: whether the caller can match classes."""

    num_classes: int
    rows: Rows | None
    asked: bool


def load_pretrained(net: nn.Module, config: ModelConfig, rows_of: Callable[[Classes], Rows] | None = None) -> str:
    """Load `config.pretrained` into `net`, which `build_model(config, …)` made. Return one line about what was loaded.

    Raises ValueError if the source is neither a file nor weights of this network, or cannot be downloaded or read; and
    as `load_source` does.
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
    """Load weights that were already read into `net`. Return one line about what was loaded.

    A head is the last linear layer or 1×1 convolution of the network or of an auxiliary classifier; timm's networks
    name theirs. If the source names the classes of its rows (a checkpoint or an export of this program, torchvision's
    or timm's weights), `rows_of` finds the network's classes among them. If it finds all of them, the head gets their
    rows in the network's order; otherwise it keeps its fresh initialisation. If the source names no classes, an equal
    number of rows is assumed to mean the same classes.

    Heads that the source lacks keep their fresh initialisation. Auxiliary heads that `net` lacks are not used. All
    other tensors must be there and fit. A common prefix of all names (Lightning's `model.`) is ignored.

    Raises ValueError if the source has several networks, or does not fit, with the first few tensors; and, if `whole`,
    if the head would keep its fresh initialisation.
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
        if whole and " is reinitialised" in note:
            without = note.replace(" is reinitialised", "")
            raise ValueError(f"pretrained = {config.pretrained}: its head is for other classes ({without})")
        weights |= tensors
        notes.append(note)
    for prefix in AUXILIARY_PREFIXES:
        if not any(name.startswith(prefix) for name in state) and any(name.startswith(prefix) for name in weights):
            notes.append(f"{prefix[:-1]} is not used")
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
    """The tensors of one head for the network, and a note about them, "" for none.

    There are no tensors if the source's do not fit; `_require_fit` then reports the error.
    """
    theirs, ours = weights.get(f"{head}.weight"), state[f"{head}.weight"]
    if theirs is None and (prefix or f"{head}.bias" not in weights):
        fresh: Weights = {name: tensor for name, tensor in state.items() if name.startswith(prefix or f"{head}.")}
        return fresh, f"{prefix[:-1] or head} is reinitialised, the source has no weights for it"
    if not isinstance(theirs, Tensor) or theirs.ndim < 2 or theirs.shape[1:] != ours.shape[1:]:
        return {}, ""
    rows = known.rows if known.num_classes == len(theirs) else None
    kept, note = _kept_rows(rows, len(theirs), len(ours))
    if known.asked and rows is None and kept:
        note = f"is kept: its {len(theirs)} classes have no names and are assumed to be the dataset's, in order"
    if note:
        note = f"{head} {note}"
    return _head_weights(head, weights, state, kept), note


def _kept_rows(rows: Rows | None, num_theirs: int, num_ours: int) -> tuple[list[int] | None, str]:
    """The source's rows that make the head, None for a fresh initialisation; and a note about it.

    rows: None if only the number of classes is known.
    """
    every = list(range(num_theirs))
    fresh = f"is reinitialised, {num_theirs} → {num_ours} classes"
    if rows is None:
        return (every, "") if num_theirs == num_ours else (None, fresh)
    found = [label for label in rows.labels if label is not None]
    if len(found) < num_ours:
        known = f"only {len(found)}" if found else "none"
        return None, f"{fresh}, {known} in common"
    notes = ["keeps the rows of the dataset's classes"]
    if num_theirs > num_ours:
        notes.append(f"{num_ours} of {num_theirs}")
    elif found != every:
        notes.append("in the dataset's order")
    elif not rows.assumed:
        return found, ""
    if rows.assumed:
        notes.append(rows.assumed)
    return found, ", ".join(notes)


def _head_weights(head: str, weights: Weights, state: dict[str, Tensor], kept: list[int] | None) -> Weights:
    """The head's tensors: the `kept` rows of `weights`, or the fresh ones of `state` if `kept` is None."""
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
    """A tensor's name in the bare network, as in torchvision's current code."""
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _unwrapped(weights: Weights, state: dict[str, Tensor], where: str) -> tuple[Weights, list[str]]:
    """The weights by their names in the network, without the prefix of a module around it; and notes about it.

    Raises ValueError if there are several networks, or no tensors of this one.
    """
    if any(name in weights for name in state):
        return weights, []
    first = next(iter(state))
    around = {name.removesuffix(first) for name in weights if name.endswith(f".{first}")}
    found = [prefix for prefix in sorted(around) if 2 * sum(prefix + name in weights for name in state) > len(state)]
    if len(found) > 1:
        raise ValueError(f"{where} alone: it has several networks, {', '.join(found)}; save the state dict of one")
    if not found:
        names = ", ".join(list(weights)[:3]) or "no tensors"
        raise ValueError(f"{where}: it has {names}; the network has {first}, …")
    prefix = found[0]
    inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    note, ignored = f"its module {prefix[:-1]}", len(weights) - len(inside)
    if ignored:
        note += f", {ignored} other tensors ignored"
    return inside, [note]


def _require_fit(weights: Weights, state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Check that the weights have the names and shapes of `state`, and return them. Raises ValueError otherwise."""
    faults = [f"{name} is missing" for name in state if name not in weights]
    faults += [f"{name} is unexpected" for name in weights if name not in state]
    fitting = {}
    for name, ours in state.items():
        theirs = weights.get(name, ours)
        if not isinstance(theirs, Tensor):
            faults.append(f"{name} is not a tensor")
        elif theirs.shape != ours.shape:
            faults.append(f"{name} has shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
        elif ours.is_floating_point() and not theirs.is_floating_point():
            faults.append(f"{name} has integers ({theirs.dtype}), like a quantized network")
        else:
            fitting[name] = theirs
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{where}: {'; '.join(faults[:3])}{more}")
    return fitting
