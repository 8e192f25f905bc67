"""Losses by name: a network's output and labels, (N,) or (N, C) → one scalar.

A new loss is an entry in `LOSSES`, a new loss by a teacher's answers an entry in `DISTILLATIONS`.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.model.config import LossConfig

IGNORED_LABEL = -100  # label of a quarantined sample; torch's default for `ignore_index`

# Logits (N, C); or in training a tuple with those of the main head and of the auxiliary heads (torchvision's
# InceptionOutputs and GoogLeNetOutputs), with None for a missing head.
Output = Tensor | tuple[Tensor | None, ...]


class Loss(Protocol):
    """A loss. `answers`: a teacher's logits for the same images, (N, C) of any float type, if there is a teacher."""

    def __call__(self, output: Output, labels: Tensor, answers: Tensor | None = None) -> Tensor: ...


def build_loss(config: LossConfig) -> Loss:
    """The loss that `config` describes: (output, labels) → float32 scalar.

    It is the main head's loss + aux_weight · each auxiliary head's loss. With a teacher it is (1 − teacher_weight) ·
    that + teacher_weight · the main head's loss by the teacher's answers.

    Logits have any float type; the loss is computed in float32. Labels are (N,) int64, or (N, C) float, the share of
    each class. The loss is a mean over samples. Samples labelled −100 add nothing to the loss, its gradient or the
    denominator of the mean. A sample with shares that sum to w < 1 has the weight w, and its shares are scaled to sum
    to 1. If no sample counts, the loss is 0 with a zero gradient.
    """
    of_head, of_teacher = LOSSES[config.name], DISTILLATIONS[config.distillation]

    def loss(output: Output, labels: Tensor, answers: Tensor | None = None) -> Tensor:
        heads = [output] if isinstance(output, Tensor) else [logits for logits in output if logits is not None]
        main, *auxiliary = (of_head(logits.float(), labels, config) for logits in heads)
        total = main + config.aux_weight * sum(auxiliary) if auxiliary else main
        assert (answers is not None) == bool(config.teacher)
        if answers is None:
            return total
        each = of_teacher(heads[0].float(), answers.float(), config)
        alpha = config.teacher_weight
        return (1 - alpha) * total + alpha * _weighted_mean(each, _weights(labels))

    return loss


def _cross_entropy(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    if labels.is_floating_point():
        shares, weights = _targets(labels, logits.shape[1], config.label_smoothing)
        return _weighted_mean(F.cross_entropy(logits, shares, reduction="none"), weights)
    # Needs no (N, C) targets in memory. reduction="mean" would be 0 / 0 for a batch without a usable sample.
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


def _soft(logits: Tensor, answers: Tensor, config: LossConfig) -> Tensor:
    """T² · KL(teacher ‖ student) at temperature T of each sample (Hinton et al. 2015, section 2)."""
    temperature = config.temperature
    ours, theirs = F.log_softmax(logits / temperature, 1), F.log_softmax(answers / temperature, 1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1) * temperature**2


def _hard(logits: Tensor, answers: Tensor, config: LossConfig) -> Tensor:
    return F.cross_entropy(logits, answers.argmax(1), reduction="none")


# (logits, answers, config) → the loss of each sample, (N,)
DISTILLATIONS: dict[str, Callable[[Tensor, Tensor, LossConfig], Tensor]] = {"soft": _soft, "hard": _hard}


def _targets(labels: Tensor, num_classes: int, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Labels → smoothed shares (N, C) float32 that sum to 1 in each row, and how much each row counts (N,)."""
    weights = _weights(labels)
    if labels.is_floating_point():
        shares = labels.float() / weights.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    else:
        shares = F.one_hot(labels.clamp(min=0), num_classes).float()
    return shares * (1 - label_smoothing) + label_smoothing / num_classes, weights


def _weights(labels: Tensor) -> Tensor:
    """How much each sample counts, (N,) float32."""
    return labels.float().sum(1) if labels.is_floating_point() else (labels != IGNORED_LABEL).float()


def _weighted_mean(each: Tensor, weights: Tensor) -> Tensor:
    return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
