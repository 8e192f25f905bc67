"""ResNet-9 for small images: David Page 2018, "How to Train Your ResNet" (DAWNBench CIFAR-10).

Input: images (N, 3, S, S) with S ≥ 32 at best, ≥ 8 at least. Output: logits (N, num_classes). Four 3×3 convolutions of
w, 2w, 4w and 8w channels, the last three followed by max-pooling; after the second and the fourth a residual branch of
two more; global max-pooling, one linear layer, logits times 1/8. At w = 64 it has 6.6 M parameters.

Pooling comes before BatchNorm and ReLU, as in the later parts of the series: the same function of the maximum where the
norm's scale is positive, on a quarter of the pixels.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

LOGIT_SCALE = 0.125


class Residual(nn.Module):
    """x + branch(x) with a branch of two convolutions of C channels: (N, C, S, S) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(channels, channels)
        self.conv2 = _conv_norm_relu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class ResNet9(nn.Module):
    """ResNet-9 whose first convolution has `width` channels."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv_norm_relu(3, width),
            _conv_norm_relu(width, 2 * width, pool=True),
            Residual(2 * width),
            _conv_norm_relu(2 * width, 4 * width, pool=True),
            _conv_norm_relu(4 * width, 8 * width, pool=True),
            Residual(8 * width),
        )
        self.fc = nn.Linear(8 * width, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)  # (N, 8w, S/8, S/8)
        return LOGIT_SCALE * self.fc(x.amax((2, 3)))


def _conv_norm_relu(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    norm, relu = nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    return nn.Sequential(conv, nn.MaxPool2d(2), norm, relu) if pool else nn.Sequential(conv, norm, relu)


RESNET9S: dict[str, Callable[..., ResNet9]] = {
    "resnet9": partial(ResNet9, 64),
    "resnet9_w32": partial(ResNet9, 32),
    "resnet9_w24": partial(ResNet9, 24),
    "resnet9_w16": partial(ResNet9, 16),
}
