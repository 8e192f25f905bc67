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
    """What a step did. loss: this rank's mean; grad_norm: the gradient's, where it is clipped; both scalars on the
    device. sample_ids: of its batches, on the CPU. position: where the epoch stands after it."""

    loss: Tensor
    grad_norm: Tensor | None
    sample_ids: list[Tensor]
    position: int


def seed_step(seed: int, step: int, rank: int) -> None:
    """torch's random numbers of a step on a rank: a function of where it is, so that there is no state to resume."""
    torch.manual_seed((seed * 2**32 + step) * 2**12 + rank)


def train_step(learner: Learner, batches: Iterator[Batch], config: TrainConfig) -> Step:
    """One optimizer step, on as many batches as `config.accumulation` says."""
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
