"""Shared by the tests of load, predict and export: a checkpoint of a small trained network."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.model.networks import build_model
from penstock.recipes import Recipe, config
from penstock.training import checkpoint

CLASSES = [{"wnid": f"n{i:08}", "name": f"name {i}"} for i in range(7)]


def recipe_of(*overrides: str) -> Recipe:
    small = ["model.name=cifar_resnet8", "data.image_size=32", "data.val_image_size=32", "data.val_resize_size=40"]
    return config.load_config(Recipe, None, [*small, "train.precision=fp32", *overrides])


def opinionated(recipe: Recipe, num_classes: int, seed: int) -> nn.Module:
    """An untrained network with BatchNorm statistics that fit its input, and logits that differ clearly."""
    torch.manual_seed(seed)
    net = build_model(recipe.model, num_classes, recipe.data.image_size)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.momentum = None  # the mean over all batches, here of one
    size = recipe.data.val_image_size
    coarse = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    images = nn.functional.interpolate(coarse * 4 - 2, size=size, mode="bilinear")
    with torch.no_grad():
        net.train()(images)
        net.eval()
        head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        logits = net(images)
        scale = 3 / (logits - logits.mean(0)).std()
        head.bias.copy_((head.bias - logits.mean(0)) * scale)
        head.weight.mul_(scale)
    return net


def write_checkpoint(path: Path, made_by: Recipe, **state: Any) -> nn.Module:
    """Write a checkpoint with the entries of `state` replaced; returns the network that has its raw weights."""
    net = opinionated(made_by, len(state.get("classes", CLASSES)), seed=1)
    parts = {"net": net.state_dict(), "recipe": config.to_toml(made_by), "dataset": "", "classes": CLASSES}
    checkpoint.save(path, parts | state)
    return net
