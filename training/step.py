"""One optimizer step: a rank's next batches → gradients, averaged over ranks → new weights."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from pipeline.batch import Batch
from recipes import TrainConfig
from training.learner import Learner


def train_step(
    learner: Learner, batches: Iterator[Batch], config: TrainConfig
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """One optimizer step. Returns this rank's mean loss and the gradient's norm where it is clipped (scalars on the
    device), and its batches' sample ids."""
    model, total, sample_ids, grad_norm = learner.model, None, [], None
    for micro in range(config.accumulation):
        images, labels, ids = next(batches)
        exchange = micro == config.accumulation - 1 or not hasattr(model, "no_sync")
        with nullcontext() if exchange else model.no_sync():  # type: ignore[operator]
            with learner.autocast:
                loss = learner.loss_fn(model(images), labels) / config.accumulation
            learner.scaler.scale(loss).backward()
        total = loss.detach() if total is None else total + loss.detach()
        sample_ids.append(ids)
    if config.clip_grad_norm:
        learner.scaler.unscale_(learner.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(learner.net.parameters(), config.clip_grad_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    assert total is not None
    return total, grad_norm, sample_ids
