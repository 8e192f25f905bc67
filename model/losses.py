"""Losses by setting: logits (N, C) and labels, (N,) or (N, C) → one scalar."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100  # what a sample that was taken out of the batch has for a label; torch's own default

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7), the mean over the samples that count.

    The loss takes logits (N, C) of any float type, computes in float32, and labels (N,) int64, or (N, C) float, the
    share of each class; it answers a float32 scalar. Samples labelled −100 add nothing to the loss, its gradient or the
    mean's denominator; if all are, the loss is 0 with a zero gradient. Nor do shares missing from a sample's 1.

    Raises ValueError for a smoothing outside [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            weight = labels.sum(dim=1, keepdim=True)
            shares = labels * (1 - label_smoothing) + weight * (label_smoothing / labels.shape[1])
            total = F.cross_entropy(logits.float(), shares, reduction="sum")
            return total / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)
        total = F.cross_entropy(
            logits.float(), labels, ignore_index=IGNORED_LABEL, label_smoothing=label_smoothing, reduction="sum"
        )
        # Not reduction="mean", which is 0 / 0 for a batch without a single usable sample.
        return total / (labels != IGNORED_LABEL).sum().clamp(min=1)

    return loss
