"""The CIFAR ResNets of He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2.

Input: images (N, 3, S, S) with S ≥ 16. Output: logits (N, num_classes). A 3×3 stem, three stages of n blocks at
16, 32 and 64 channels, global average pooling and one linear layer: 6n + 2 layers with weights.

Shortcuts are the paper's option A (subsample, pad the new channels with zeros), which keeps its parameter counts
(0.27, 0.46, 0.66 and 0.85 M for 20, 32, 44 and 56 layers with 10 classes); projections (option B) add 2,752.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a parameter-free shortcut: (N, C, S, S) → (N, out, ⌈S / stride⌉, ⌈S / stride⌉)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            # every stride-th pixel; slicing would give a gradient that is not channels-last
            x = F.avg_pool2d(x, 1, self.stride)
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        activation: Tensor = self.relu(residual + x)
        return activation


class CifarResNet(nn.Module):
    """A CIFAR ResNet of `depth` = 6n + 2 layers. `zero_init_residual` starts every block as the identity."""

    def __init__(self, depth: int, num_classes: int, *, zero_init_residual: bool = True) -> None:
        super().__init__()
        assert depth in range(8, 1200, 6), f"a CIFAR ResNet has 6n + 2 layers, not {depth}"
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, num_blocks, stride=1)
        self.layer2 = _stage(16, 32, num_blocks, stride=2)
        self.layer3 = _stage(32, 64, num_blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))  # (N, 16, S, S)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, S/4, S/4)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


CIFAR_RESNETS: dict[str, Callable[..., CifarResNet]] = {
    f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 32, 44, 56)
}
