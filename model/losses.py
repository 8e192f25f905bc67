"""Losses by setting: what a network answers and labels, (N,) or (N, C) → one scalar. One entry in `LOSSES` each."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.model.config import LossConfig

IGNORED_LABEL = -100  # what a sample that was taken out of the batch has for a label; torch's own default

# logits (N, C), or in training a tuple of the main head's and the auxiliary heads' (torchvision's InceptionOutputs and
# GoogLeNetOutputs), None for a head that is not there
Output = Tensor | tuple[Tensor | None, ...]
Loss = Callable[[Output, Tensor], Tensor]


def build_loss(config: LossConfig) -> Loss:
    """The loss that `config` describes: (output, labels) → float32 scalar, main head + aux_weight · each other head.

    Logits have any float type, the loss is computed in float32. Labels are (N,) int64, or (N, C) float, the share of
    each class. It is the mean over the samples that count: those labelled −100 add nothing to the loss, its gradient or
    the mean's denominator, and a sample whose shares sum to w < 1 counts w times, as if its shares summed to 1. If
    nothing counts the loss is 0 with a zero gradient.
    """
    of_head = LOSSES[config.name]

    def loss(output: Output, labels: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            return of_head(output.float(), labels, config)
        main, *auxiliary = (of_head(logits.float(), labels, config) for logits in output if logits is not None)
        return main + config.aux_weight * sum(auxiliary) if auxiliary else main

    return loss


def _cross_entropy(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    if labels.is_floating_point():
        shares, weights = _targets(labels, logits.shape[1], config.label_smoothing)
        return _weighted_mean(F.cross_entropy(logits, shares, reduction="none"), weights)
    # Without (N, C) targets in memory, and not reduction="mean", which is 0 / 0 for a batch without a usable sample.
    total = F.cross_entropy(
        logits, labels, ignore_index=IGNORED_LABEL, label_smoothing=config.label_smoothing, reduction="sum"
    )
    return total / (labels != IGNORED_LABEL).sum().clamp(min=1)


def _bce(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    targets, weights = _targets(labels, logits.shape[1], config.label_smoothing)
    if config.bce_target_threshold is not None:
        targets = (targets > config.bce_target_threshold).float()
    return _weighted_mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1), weights)


def _mse(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    targets, weights = _targets(labels, logits.shape[1], config.label_smoothing)
    return _weighted_mean((logits - targets).square().mean(1), weights)


LOSSES: dict[str, Callable[[Tensor, Tensor, LossConfig], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "bce": _bce,
    "mse": _mse,
}


def _targets(labels: Tensor, num_classes: int, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Labels → smoothed shares (N, C) float32 that sum to 1 in each row, and how much each row counts (N,)."""
    if labels.is_floating_point():
        weights = labels.float().sum(1)
        shares = labels.float() / weights.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    else:
        weights = (labels != IGNORED_LABEL).float()
        shares = F.one_hot(labels.clamp(min=0), num_classes).float()
    return shares * (1 - label_smoothing) + label_smoothing / num_classes, weights


def _weighted_mean(each: Tensor, weights: Tensor) -> Tensor:
    return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
