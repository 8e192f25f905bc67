"""Load a trained network, with everything needed to use it, from a checkpoint or a run directory.

`train.py eval`, `predict` and `export` start here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from penstock.commands.options import Weights
from penstock.model.networks import build_model
from penstock.recipes import Recipe, config
from penstock.shards.format import ClassInfo
from penstock.training import checkpoint

# How logits become probabilities, by the loss that the network was trained with. Squared error fits the logits to the
# target probabilities directly.
ACTIVATIONS = {"cross_entropy": "softmax", "bce": "sigmoid", "mse": "clip"}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """net: in evaluation mode, on the requested device, in float32. recipe: used in training. classes: `classes[i]`
    belongs to label i. path: the checkpoint's file. weights: which of its weights these are. oriented: whether the
    training images were packed with --apply-orientation."""

    net: nn.Module
    recipe: Recipe
    classes: tuple[ClassInfo, ...]
    path: Path
    weights: Literal["raw", "ema"]
    oriented: bool = False

    @property
    def activation(self) -> str:
        """The function from logits to probabilities: "softmax", "sigmoid", or "clip" (to 0 … 1)."""
        return ACTIVATIONS[self.recipe.loss.name]

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, C) → (N, C), each in 0 … 1. They sum to 1 only for "softmax"."""
        match self.activation:
            case "softmax":
                return logits.softmax(1)
            case "sigmoid":
                return logits.sigmoid()
            case _:
                return logits.clamp(0, 1)


def load_network(path: Path, *, weights: Weights = "auto", device: torch.device) -> Loaded:
    """Load the network of a checkpoint file, or of a run directory: its best checkpoint, otherwise its last.

    `weights`: "raw" selects the trained weights, "ema" their moving average, "auto" the average if there is one.

    Raises ValueError if the checkpoint does not exist or cannot be read, has no average although one is requested, or
    does not fit the network that its recipe names.
    """
    file = checkpoint_file(path)
    state = checkpoint.load(file)
    checkpoint.require(state, ("net", "recipe", "classes"), file)
    average = state.get("ema")
    if weights == "ema" and average is None:
        raise ValueError(f"{file}: has no averaged weights (the run's ema.decay is 0). Give --weights raw or auto")
    chosen = state["net"] if average is None or weights == "raw" else average

    recipe = config.from_toml(Recipe, state["recipe"], str(file))
    classes = tuple(ClassInfo(c["wnid"], c["name"]) for c in state["classes"])
    net = build_model(recipe.model, len(classes), recipe.data.image_size)
    _fill(net, chosen, f"{file}: {recipe.model.name}")
    return Loaded(
        net=net.to(device).eval().requires_grad_(False),
        recipe=recipe,
        classes=classes,
        path=file,
        weights="raw" if chosen is state["net"] else "ema",
        oriented=bool(state.get("oriented")),
    )


def checkpoint_file(path: Path) -> Path:
    """`path` itself, or a run directory's best checkpoint, otherwise its last. Raises ValueError if it has none."""
    if not path.is_dir():
        return path
    files = checkpoint.best_path(path), checkpoint.last_path(path)
    for file in files:
        if file.is_file():
            return file
    raise ValueError(f"{path}: no checkpoint in this directory: neither {' nor '.join(map(str, files))} exists")


def _fill(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load the weights. If they do not fit, raise a ValueError that names the first that does not."""
    own = net.state_dict()
    differing = [
        f"{name} is {_shape(state, name)} in the checkpoint and {_shape(own, name)} in the network"
        for name in dict.fromkeys([*own, *state])
        if _shape(own, name) != _shape(state, name)
    ]
    if differing:
        raise ValueError(
            f"{where} in this version does not fit these weights: {len(differing)} tensors differ, e.g. {differing[0]}"
        )
    net.load_state_dict(state)


def _shape(state: dict[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "missing"
