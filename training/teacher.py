"""The teacher in distillation (`[loss] teacher`): a trained, frozen network that predicts the training images.

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
    """Images (N, 3, S, S), normalised for the student → logits (N, C), in the precision of the surrounding autocast.

    net: in evaluation mode, frozen. scale, shift: (1, 3, 1, 1) float32. images · scale + shift has the normalisation
    that the net was trained with. None if both normalisations are the same.
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
    """Build the recipe's `Teacher`, or return None if it has none. `say` is called with a line about the teacher.

    rows_of: finds the rows of its head for the dataset's classes. None for a benchmark, which accepts any head.

    Raises ValueError if the teacher is missing, has other classes, or accepts only images of another size.
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
            raise ValueError(f"loss.teacher: {model.name} accepts only images of {own} px, but training uses {size} px")
    teacher = Teacher(net, *_to_its_own(recipe.data, levels_of(source.about, net))).to(device)
    # Compiled without CUDA graphs, because the student's graphs would overwrite the teacher's logits.
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
            f"{loss.teacher}: does not name its network. Set loss.teacher to the network's name, and "
            "loss.teacher_weights to this file"
        )
    try:
        model = ModelConfig(**said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{loss.teacher}: this version cannot build its network ({error})") from None
    return replace(model, pretrained=loss.teacher, channels_last=layout, aux_logits=False, compile=False,
                   compile_mode="auto"), source  # fmt: skip


def levels_of(about: Mapping[str, object], net: nn.Module) -> Levels | None:
    """The mean and std that a network was trained with: from the facts in its weights, or from timm's configuration,
    which has them on the scale 0 … 1. None if neither has them."""
    facts, scale = about, 1.0
    if "mean" not in about:
        facts, scale = getattr(net, "pretrained_cfg", None) or {}, 255.0
    mean, std = facts.get("mean"), facts.get("std")
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
        return None
    return [scale * value for value in mean], [scale * value for value in std]


def _to_its_own(data: DataConfig, levels: Levels | None) -> tuple[Tensor, Tensor] | tuple[()]:
    """scale and shift of a `Teacher`, or () if both networks have the same normalisation. With the student's mean m and
    std s, and the teacher's m′ and s′: (p − m′) / s′ = (p − m) / s · s / s′ + (m − m′) / s′."""
    if levels is None or np.allclose([data.mean, data.std], levels, rtol=0, atol=1e-3):  # timm's were on 0 … 1
        return ()
    (mean, std), (own_mean, own_std) = np.array([data.mean, data.std]), np.array(levels)
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return torch.tensor(scale).float().view(1, 3, 1, 1), torch.tensor(shift).float().view(1, 3, 1, 1)
