"""Channels-last (NHWC) memory: make a network keep that order in all activations and gradients.

Most of PyTorch's operators return the memory order of their input. The backward pass of global average pooling does
not: it returns NCHW gradients, for the last activation and in every squeeze-and-excitation block.
"""

import torch
from torch import Tensor, nn


class GlobalAvgPool2d(nn.Module):
    """The mean of each channel, (N, C, H, W) → (N, C, 1, 1), with a channels-last gradient.

    The gradient of a mean has the memory order of its dimensions, so they are arranged as N, H·W, C.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)[:, :, None, None]


def use_channels_last(net: nn.Module) -> nn.Module:
    """Convert `net`, in place: its weights' memory order, and its global average poolings."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, GlobalAvgPool2d())
    return net.to(memory_format=torch.channels_last)
