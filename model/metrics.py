"""Count correct predictions: logits and labels → counts that can be summed over batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor


def topk_correct(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """For each k, the number of samples with a label among the k highest logits.

    logits (N, C), labels (N,) int64, or (N, L) if any of several labels is right → (len(ks),) int64 on the same device,
    without synchronisation. A k above the number of classes counts as C. A label below 0 never matches.
    """
    num_classes = logits.shape[1]
    predictions = logits.topk(min(max(ks), num_classes), dim=1).indices  # (N, k) best first
    hits = (predictions[:, :, None] == labels.reshape(len(labels), 1, -1)).any(2)
    return torch.stack([hits[:, :k].any(1).sum() for k in ks])
