"""One optimizer step: a rank's next batches → gradients, averaged over ranks → new weights."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.pipeline import ranges
from penstock.pipeline.batch import Batch
from penstock.recipes import TrainConfig
from penstock.training.learner import Learner


class Step(NamedTuple):
    """The result of a step. loss: this rank's mean. grad_norm: the gradient's norm, if it is clipped. Both are scalars
    on the device. sample_ids: of its batches, on the CPU. position: in the epoch, after the step."""

    loss: Tensor
    grad_norm: Tensor | None
    sample_ids: list[Tensor]
    position: int


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step on a rank. The seed depends only on step and rank, so a resume needs no random state."""
    torch.manual_seed((seed * 2**32 + step) * 2**12 + rank)


def train_step(learner: Learner, batches: Iterator[Batch], config: TrainConfig) -> Step:
    """Run one optimizer step, on `config.accumulation` batches."""
    model, total, sample_ids, grad_norm, position = learner.model, None, [], None, 0
    for micro in range(config.accumulation):
        batch = next(batches)
        exchange = micro == config.accumulation - 1 or not hasattr(model, "no_sync")
        with nullcontext() if exchange else model.no_sync():  # type: ignore[operator]
            with ranges.span("forward"), learner.autocast:
                output, answers = model(batch.images), learner.answers(batch.images)
                loss = learner.loss_fn(output, batch.labels, answers) / config.accumulation
            with ranges.span("backward"):
                learner.scaler.scale(loss).backward()
        total = loss.detach() if total is None else total + loss.detach()
        sample_ids.append(batch.sample_ids)
        position = batch.position
    with ranges.span("step"):
        if config.clip_grad_norm:
            learner.scaler.unscale_(learner.optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(learner.net.parameters(), config.clip_grad_norm)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
    assert total is not None
    return Step(total, grad_norm, sample_ids, position)
