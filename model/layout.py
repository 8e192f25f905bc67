"""Channels-last (NHWC) memory: a network → the same, whose activations and gradients keep that order throughout.

Most of PyTorch's operators answer in the order of their input. Global average pooling does not, backwards: it hands the
last activation's gradient on in NCHW, and every squeeze-and-excitation block's.
"""

import torch
from torch import Tensor, nn


class GlobalAvgPool2d(nn.Module):
    """The mean of each channel, (N, C, H, W) → (N, C, 1, 1), with a channels-last gradient.

    A mean's gradient is written in the order of its dimensions, so they come as N, H·W, C.
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
