"""Collect losses and times of consecutive steps without a synchronisation per step, and return them by interval.

`close` ends an interval and starts to copy its values from the device to the CPU. `take` waits for them and returns one
line per step. On a GPU it is best called one interval later, so that it does not wait and the GPU never idles.
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
    """The facts about a step that are on the CPU. is_clipped: whether it has a gradient norm."""

    step: int
    epoch: int
    position: int
    lr: float
    is_clipped: bool


class _Interval(NamedTuple):
    """A closed interval of steps. `values`: (2, n), losses and gradient norms. Their copy to the CPU is complete at
    `end`."""

    steps: list[_Step]
    values: Tensor
    digests: list[int]
    waits: list[tuple[Mark, Mark]]
    begin: Mark
    end: Mark
    global_batch_size: int


class StepLog:
    """Collects the steps since the last `close`. Losses stay on the device. It also measures the wait for data.

    Nothing here waits for the device except `take`. Call `restart` before the first step.

    epoch_digest: digest of the epoch's samples up to the last `close`, over all ranks: the sum of the steps'
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
        """`capacity`: the largest number of steps in an interval. `sum_over_ranks` adds up a tensor in place."""
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
        """Begin or continue an epoch, given its batch size over all ranks and the digest of its samples so far.

        The interval's clock restarts, so that the time of a validation does not count.
        """
        self._global_batch_size, self.epoch_digest = global_batch_size, epoch_digest
        self._begin, self._waits = mark(self._device), []

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass on the batches, and measure the wait for each.

        On a GPU the wait is the time in which the GPU was idle, from the end of the last step's work to the arrival of
        the batch. The CPU's own time in `next` would be mostly the wait for the GPU.
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
        """Record one step. `loss`: this rank's scalar on the device. `sample_ids`: the samples of the step.
        `grad_norm`: the gradient's 2-norm, if known, the same scalar on each rank."""
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
        """Whether to take an interval only when the next one ends, because the device runs behind the CPU."""
        return self._device.type == "cuda"

    @property
    def is_full(self) -> bool:
        return len(self._steps) == self._values.shape[1]

    def close(self) -> None:
        """End the interval, if it has a step. Every rank calls this after the same step. It does not wait for the
        device."""
        if not self._steps:
            return
        num = len(self._steps)
        # The reductions work in place. `add` overwrites the sums in the buffers later.
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
        """A line for each step of the oldest closed interval that was not taken yet; empty if there is none."""
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
