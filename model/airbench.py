"""airbench94's network for small images: Keller Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU".

Input: images (N, 3, S, S), S ≥ 16, each channel normalised to mean 0 and deviation 1. Output: logits (N, num_classes).
The layers are: a frozen 2×2 convolution that whitens patches; three blocks of two 3×3 convolutions; global max-pooling;
one linear layer; logits times 1/9. BatchNorm and GELU follow each convolution of a block, max-pooling also the first.
With widths 64, 256, 256 it has 2.0 M parameters, and a 32 px image costs 118 M multiply-adds.

It differs from the original in two ways. The whitening comes from a model of natural images (`PIXELS`: the correlation
of neighbouring pixels, `COLOURS`: that of red, green and blue) instead of the training set's covariance, so a network
is built without data. And the bias of the whitening is trained to the end, not for three epochs.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

LOGIT_SCALE = 1 / 9
PIXELS = ((1.0, 0.93), (0.93, 1.0))  # as measured on CIFAR-10's training images
COLOURS = ((1.0, 0.92, 0.81), (0.92, 1.0, 0.92), (0.81, 0.92, 1.0))
LEAST_VARIANCE = 5e-4  # added to each direction's variance, so that the weakest are not amplified noise
NORM_MOMENTUM = 0.4  # torch's; 0.6 in the paper's notation


def whitening_filters() -> Tensor:
    """Filters that turn 2×2 patches of such images into 12 uncorrelated outputs of variance 1: (12, 3, 2, 2).

    The covariance of a patch is colours ⊗ rows ⊗ columns, so its eigenvectors are products: opponent colours with
    Haar's sums and differences.
    """
    (k, a), (p, b) = torch.linalg.eigh(torch.tensor(COLOURS)), torch.linalg.eigh(torch.tensor(PIXELS))
    variances = torch.einsum("i,j,k->ijk", k, p, p).reshape(12, 1, 1, 1)
    filters = torch.einsum("ci,yj,xk->ijkcyx", a, b, b).reshape(12, 3, 2, 2)
    return filters / (variances + LEAST_VARIANCE).sqrt()


class Airbench(nn.Module):
    """airbench94's network. `widths`: the channels of its three blocks."""

    def __init__(self, widths: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        filters = whitening_filters()
        self.whiten.weight.data.copy_(torch.cat([filters, -filters]))
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        channels = (24, *widths)
        self.blocks = nn.Sequential(
            nn.GELU(), *(_block(c_in, c_out) for c_in, c_out in zip(channels, widths, strict=False))
        )
        self.fc = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.whiten(images))  # (N, widths[2], ⌊(S - 1) / 8⌋, the same)
        logits: Tensor = self.fc(x.amax((2, 3)))
        return LOGIT_SCALE * logits


def _block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(c_in, c_out), nn.MaxPool2d(2), _norm(c_out), nn.GELU(), _conv(c_out, c_out), _norm(c_out), nn.GELU()
    )


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    """A convolution. Its first c_in filters start as the identity (Zagoruyko & Komodakis 2017, "DiracNets")."""
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:c_in])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with a fixed scale of 1."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm


AIRBENCHES: dict[str, Callable[..., Airbench]] = {
    "airbench94": partial(Airbench, (64, 256, 256)),
}
