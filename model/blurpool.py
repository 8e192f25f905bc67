"""BlurPool: anti-aliased downsampling by a fixed blur before a network's strided convolutions.

From Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", in the form of the FFCV ImageNet recipes: the
blur comes before the convolution. Only convolutions with at least 16 input channels get it, so not the first one.
Parameter names stay, so that a state dict fits with and without the blur.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS = 16


class BlurPoolConv2d(nn.Module):
    """`conv` on its input blurred by [1, 2, 1] ⊗ [1, 2, 1] / 16, channel by channel, zeros beyond the border.

    (N, C, S, S) → the output of `conv`. The module takes over the convolution's parameters under their names. The
    filter is not part of the state dict. A 1×1 convolution reads only every stride-th pixel, so only those are blurred.
    """

    blur_filter: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.padding_mode == "zeros"
        self.weight, self.bias = conv.weight, conv.bias
        self.groups, self.dilation, self.padding = conv.groups, conv.dilation, conv.padding
        reads_all = conv.kernel_size != (1, 1) or conv.padding != (0, 0)
        self.blur_stride: tuple[int, ...] = (1, 1) if reads_all else conv.stride
        self.stride: tuple[int, ...] = conv.stride if reads_all else (1, 1)
        row = torch.tensor([1.0, 2.0, 1.0], device=conv.weight.device)
        blur_filter = (row[:, None] * row / 16).repeat(conv.in_channels, 1, 1, 1)  # (C, 1, 3, 3)
        self.register_buffer("blur_filter", blur_filter, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.conv2d(x, self.blur_filter, stride=self.blur_stride, padding=1, groups=len(self.blur_filter))
        return F.conv2d(blurred, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"weight {tuple(self.weight.shape)}, stride {self.stride}, blur stride {self.blur_stride}"


def use_blurpool(net: nn.Module) -> int:
    """Put a blur before every strided convolution with at least 16 input channels, in place. Return their number."""
    found = [
        (parent, name, child)
        for parent in net.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= MIN_CHANNELS
    ]
    for parent, name, conv in found:
        setattr(parent, name, BlurPoolConv2d(conv))
    return len(found)
