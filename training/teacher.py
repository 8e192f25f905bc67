"""A teacher: a trained network, frozen, that answers the images which another one trains on (`[loss] teacher`).

Input: the recipe and the dataset's classes. Output: a `Teacher`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from penstock.model.config import ModelConfig
from penstock.model.names import check_teacher
from penstock.model.networks import build_model
from penstock.model.pretrained import Rows, load_source
from penstock.model.weight_files import Classes, Source, read_weights
from penstock.pipeline.config import DataConfig
from penstock.recipes import Recipe

Levels = tuple[Sequence[float], Sequence[float]]  # mean and std of each channel, from 0 to 255


class Teacher(nn.Module):
    """Images (N, 3, S, S), normalised as the student's → logits (N, C), in the precision of the autocast around it.

    net: in evaluation mode, frozen. scale, shift: (1, 3, 1, 1) float32, by which images · scale + shift are as the net
    was trained with; None where that is what they are.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, net: nn.Module, scale: Tensor | None = None, shift: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        logits: Tensor = self.net(images)
        return logits


def build_teacher(
    recipe: Recipe,
    num_classes: int,
    device: torch.device,
    *,
    rows_of: Callable[[Classes], Rows] | None,
    compiled: bool,
    say: Callable[[str], None],
) -> nn.Module | None:
    """The `Teacher` that the recipe names, None where it names none. `say` gets a line about what it is.

    rows_of: which of the rows of its head are the dataset's classes; None for a benchmark, which any head will do.

    Raises ValueError where it is not there, knows other classes, or takes images of another size only.
    """
    if not recipe.loss.teacher:
        return None
    check_teacher(recipe.loss.teacher, recipe.loss.teacher_weights)
    try:
        model, source = _read(recipe)
        net = build_model(model, num_classes, recipe.data.image_size)
        line = load_source(net, source, model, rows_of, whole=rows_of is not None)
    except ValueError as error:
        raise ValueError(f"loss.teacher: {str(error).removeprefix('pretrained = ')}") from None
    say(f"teacher: {model.name}, {line.removeprefix('pretrained weights: ')}")
    for size in recipe.phases.image_size or (recipe.data.image_size,):
        if (own := getattr(net, "image_size", size)) != size:
            raise ValueError(f"loss.teacher: {model.name} takes images of {own} px only, and training has {size} px")
    teacher = Teacher(net, *_to_its_own(recipe.data, levels_of(source.about, net))).to(device)
    # Compiled without CUDA graphs: the student's would overwrite its answers.
    return torch.compile(teacher, dynamic=False) if compiled else teacher  # type: ignore[return-value]


def _read(recipe: Recipe) -> tuple[ModelConfig, Source]:
    """The settings of the teacher's network, and its weights."""
    loss, layout = recipe.loss, recipe.model.channels_last
    if loss.teacher_weights:
        model = ModelConfig(name=loss.teacher, pretrained=loss.teacher_weights, channels_last=layout)
        return model, read_weights(model, recipe.data.image_size)
    source = read_weights(ModelConfig(pretrained=loss.teacher))
    said = source.about.get("model")
    if not isinstance(said, Mapping):
        raise ValueError(
            f"{loss.teacher}: does not say of which network it is; let loss.teacher be that one's name, and "
            "loss.teacher_weights this file"
        )
    try:
        model = ModelConfig(**said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{loss.teacher}: of a network that this version does not know ({error})") from None
    return replace(model, pretrained=loss.teacher, channels_last=layout, aux_logits=False, compile=False,
                   compile_mode="auto"), source  # fmt: skip


def levels_of(about: Mapping[str, object], net: nn.Module) -> Levels | None:
    """Those of the images that a network was trained with, as its weights say, or as timm says of its own in shares of
    1; None where nothing does."""
    told, scale = about, 1.0
    if "mean" not in about:
        told, scale = getattr(net, "pretrained_cfg", None) or {}, 255.0
    mean, std = told.get("mean"), told.get("std")
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
        return None
    return [scale * value for value in mean], [scale * value for value in std]


def _to_its_own(data: DataConfig, levels: Levels | None) -> tuple[Tensor, Tensor] | tuple[()]:
    """scale, shift of a `Teacher`, none where both are normalised alike: with the student's mean m and std s, and its
    own m′ and s′, (p − m′) / s′ = (p − m) / s · s / s′ + (m − m′) / s′."""
    if levels is None or np.allclose([data.mean, data.std], levels, rtol=0, atol=1e-3):  # some were shares of 1
        return ()
    (mean, std), (own_mean, own_std) = np.array([data.mean, data.std]), np.array(levels)
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return torch.tensor(scale).float().view(1, 3, 1, 1), torch.tensor(shift).float().view(1, 3, 1, 1)
