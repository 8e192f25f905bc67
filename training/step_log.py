"""Losses and times of consecutive steps, without a synchronisation per step → one line a step, an interval at a time.

`close` ends an interval: what is on the device starts its way to the CPU. `take` gives the interval's lines, and waits
for them. On a GPU that is best one interval later: what waits for nothing leaves the GPU no gap.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from penstock.pipeline import ranges
from penstock.training.clock import Mark, mark, seconds, wait_for
from penstock.training.digest import INT63, sample_digest
from penstock.training.records import StepLine

T = TypeVar("T")


class _Step(NamedTuple):
    """What is known of a step on the CPU. is_clipped: it has a gradient norm."""

    step: int
    epoch: int
    position: int
    lr: float
    is_clipped: bool


class _Interval(NamedTuple):
    """Closed steps, and what was noted of them; `values` (2, n), losses and gradient norms, is on its way to the CPU
    until `end` has come."""

    steps: list[_Step]
    values: Tensor
    digests: list[int]
    waits: list[tuple[Mark, Mark]]
    begin: Mark
    end: Mark
    global_batch_size: int


class StepLog:
    """The steps since the last `close`: losses stay on the device, and time spent waiting for data is measured.

    Nothing here waits for the device but `take`. `restart` comes before the first step.

    epoch_digest: of the samples of the epoch's steps up to the last `close`, over all ranks: the sum of the steps'
        `sample_digest`s modulo 2^63. total_s, total_wait_s: of all intervals taken, by this rank's clock.
    """

    def __init__(
        self,
        capacity: int,
        *,
        device: torch.device,
        world_size: int = 1,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """`capacity`: the most steps of an interval. `sum_over_ranks` adds up a tensor in place."""
        self._values = torch.zeros(2, capacity, dtype=torch.float32, device=device)  # losses, gradient norms
        self._digests = torch.zeros(capacity, dtype=torch.int64)
        self._steps: list[_Step] = []
        self._waits: list[tuple[Mark, Mark]] = []
        self._closed: deque[_Interval] = deque()
        self._device, self._world_size, self._sum_over_ranks = device, world_size, sum_over_ranks
        self._global_batch_size = 0
        self.epoch_digest = 0
        self.total_wait_s = 0.0
        self.total_s = 0.0

    def restart(self, *, global_batch_size: int, epoch_digest: int) -> None:
        """Begin an epoch, or go on in one: its batch size over all ranks, and the digest of its samples so far.

        The interval's clock starts anew, so that a validation's time counts for nothing.
        """
        self._global_batch_size, self.epoch_digest = global_batch_size, epoch_digest
        self._begin, self._waits = mark(self._device), []

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, with the wait for each measured.

        On a GPU that is how long the GPU had nothing to do, from the end of the last step's work to the arrival of
        the batch: the CPU's own time in `next` would be mostly the wait for the GPU.
        """
        iterator = iter(batches)
        while True:
            begin = mark(self._device)
            try:
                with ranges.span("wait"):
                    batch = next(iterator)
            except StopIteration:
                return
            self._waits.append((begin, mark(self._device)))
            yield batch

    def add(
        self,
        *,
        step: int,
        epoch: int,
        position: int,
        loss: Tensor,
        lr: float,
        sample_ids: Iterable[Tensor] = (),
        grad_norm: Tensor | None = None,
    ) -> None:
        """Note one step: `loss`, this rank's scalar on the device, `sample_ids`, what it was made from, and where it is
        known `grad_norm`, the gradient's 2-norm, the same scalar on each rank."""
        number = len(self._steps)
        self._values[0, number].copy_(loss.detach())
        if grad_norm is not None:
            self._values[1, number].copy_(grad_norm.detach())
        self._digests[number] = sum(sample_digest(ids.numpy()) for ids in sample_ids) & INT63
        self._steps.append(_Step(step, epoch, position, lr, is_clipped=grad_norm is not None))

    @property
    def num_steps(self) -> int:
        """Steps since the last `close`."""
        return len(self._steps)

    @property
    def is_deferred(self) -> bool:
        """Whether an interval is best taken once the next one ends: the device runs behind the CPU."""
        return self._device.type == "cuda"

    @property
    def is_full(self) -> bool:
        return len(self._steps) == self._values.shape[1]

    def close(self) -> None:
        """End the interval, if it has a step: every rank after the same one. Nothing waits for the device here."""
        if not self._steps:
            return
        num = len(self._steps)
        # The reductions work in place: `add` overwrites what they leave in the buffers.
        self._sum_over_ranks(self._values[0, :num])
        digests = self._sum_over_ranks(self._digests[:num]).tolist()
        self.epoch_digest = (self.epoch_digest + sum(digests)) & INT63
        values = torch.empty_like(self._values[:, :num], device="cpu", pin_memory=self._device.type == "cuda")
        values.copy_(self._values[:, :num], non_blocking=True)
        end = mark(self._device)
        interval = _Interval(self._steps, values, digests, self._waits, self._begin, end, self._global_batch_size)
        self._closed.append(interval)
        self._steps, self._waits, self._begin = [], [], end

    def take(self) -> list[StepLine]:
        """A line for each step of the oldest interval that is closed and not taken; empty where there is none."""
        if not self._closed:
            return []
        interval = self._closed.popleft()
        wait_for(interval.end)
        elapsed_s = seconds(interval.begin, interval.end)
        wait_s = sum(seconds(*wait) for wait in interval.waits)
        self.total_s += elapsed_s
        self.total_wait_s += wait_s
        rates = {
            "images_per_s": len(interval.steps) * interval.global_batch_size / elapsed_s,
            "data_wait": min(wait_s / elapsed_s, 1.0),
        }
        if self._device.type == "cuda":
            rates["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        losses, norms = interval.values.tolist()
        lines = []
        for noted, loss, norm, digest in zip(interval.steps, losses, norms, interval.digests, strict=True):
            line: dict[str, object] = {"step": noted.step, "epoch": noted.epoch, "position": noted.position}
            line |= {"loss": loss / self._world_size, "lr": noted.lr}
            if noted.is_clipped:
                line["grad_norm"] = norm
            lines.append(cast(StepLine, line | rates | {"samples": f"{digest & INT63:016x}"}))
        return lines
