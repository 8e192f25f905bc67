"""Stochastic depth (Huang et al. 2016, "Deep Networks with Stochastic Depth") for torchvision's networks.

Input: a network, and the probability that its last residual branch is dropped. Earlier branches are dropped less,
linearly in depth. Each sample drops its own branches. The remaining branches are scaled up in training, so that
evaluation needs no factor. torchvision's ResNets have no stochastic depth: this module adds it to their blocks and
keeps the names of their parameters.
"""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth


class StochasticBlock(nn.Module):
    """A ResNet's `BasicBlock` or `Bottleneck` that drops its residual branch with `probability` in training.

    (N, C, S, S) → the block's output. It takes over the block's modules under their names.
    """

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module
    conv3: nn.Module
    bn3: nn.Module
    relu: nn.Module
    downsample: nn.Module

    def __init__(self, block: nn.Module, probability: float) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.has_projection, self.is_bottleneck = "downsample" in self._modules, "conv3" in self._modules
        self.stochastic_depth = StochasticDepth(probability, "row")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if self.has_projection else x
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.is_bottleneck:
            branch = self.bn3(self.conv3(self.relu(branch)))
        branch = self.stochastic_depth(branch)
        branch += shortcut
        activation: Tensor = self.relu(branch)
        return activation


def add_stochastic_depth(resnet: nn.Module, probability: float) -> None:
    """Give each of a torchvision ResNet's blocks l = 1 … L stochastic depth with probability · l / L, in place.

    That is the paper's linear decay, equation (4): survival falls from 1 before the first block.
    """
    blocks = [
        (parent, name, child)
        for parent in resnet.modules()
        for name, child in parent.named_children()
        if isinstance(child, BasicBlock | Bottleneck)
    ]
    for number, (parent, name, block) in enumerate(blocks, start=1):
        setattr(parent, name, StochasticBlock(block, probability * number / len(blocks)))


def rescale_stochastic_depth(net: nn.Module, probability: float) -> None:
    """Scale the probabilities of a network's branches so that the largest, the last branch's, is `probability`."""
    layers = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    largest = max(layer.p for layer in layers)
    for layer in layers:
        layer.p *= probability / largest
