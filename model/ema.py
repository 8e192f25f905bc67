"""The exponential moving average of a network's weights (Polyak averaging), which often scores better than the weights.

Input: the network after a step. Output: `Ema.net`, a network of the same kind to validate and to save.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """decay: of one step; 0 switches the average off. warmup: decay (1 + t) / (10 + t) while that is less, so that a
    short run forgets its first weights (as in Inception's training, TensorFlow's `num_updates`)."""

    decay: float = 0.0
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: {self.decay} must be in [0, 1)")


class Ema:
    """`net` is the average: a copy that is in evaluation mode and takes no gradients.

    Parameters are averaged, in place and in one multi-tensor kernel a step; buffers (BatchNorm's statistics, averages
    themselves) are copied.
    """

    def __init__(self, net: nn.Module, config: EmaConfig) -> None:
        self._config = config
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """The decay of update number `step`, from 0."""
        return min(self._config.decay, (1 + step) / (10 + step)) if self._config.warmup else self._config.decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """average ← decay · average + (1 − decay) · weights, after step number `step` (from 0) of the run."""
        averages: list[torch.Tensor] = list(self.net.parameters())
        weights: list[torch.Tensor] = list(net.parameters())
        torch._foreach_lerp_(averages, weights, 1.0 - self.decay_at(step))
        for average, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            average.copy_(buffer)
