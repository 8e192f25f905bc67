"""A step that failed → `RUN/failed-step-N.pt`: the state before it and its samples, for `train.py replay`."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.feed import Feed
from pipeline.plan import Span
from training import checkpoint
from training.clock import Mark, mark, wait_for
from training.data import TrainingData
from training.distributed import World
from training.learner import RunState
from training.snapshot import at_rest, snapshot, to_cpu

_SHOWN_IDS = 8
SMALLER = "lower train.global_batch_size or raise train.accumulation"


class Failure:
    """Keeps a copy of the run's state from the last time that all was well: once a log interval, on the device.

    The losses are looked at once an interval, so the copy is of a step before the failed one; the steps between are
    made again by the replay, from the plan. Nothing here waits for the device but `is_well`, and in fp16 the loss
    scaler, whose state is read as numbers.
    """

    def __init__(
        self, run_dir: Path, world: World, capture: Callable[[], dict[str, Any]], about: dict[str, Any]
    ) -> None:
        """`capture` gives the state's changing part, `about` is the rest (`training.learner`)."""
        self._run_dir, self._world, self._capture, self._about = run_dir, world, capture, about
        self._good: dict[str, Any] = {}
        self._kept: deque[tuple[dict[str, Any], Tensor, Mark]] = deque()

    def all_is_well(self) -> None:
        """The state is good as it is now: what a failure after this is replayed from."""
        self._good = snapshot(self._capture())

    def keep(self, net: nn.Module) -> None:
        """Copy the state as it is now, at an interval's end, until `is_well` judges it."""
        self._kept.append((snapshot(self._capture()), to_cpu(finite(net)), mark(self._world.device)))

    def is_well(self) -> bool:
        """Whether the weights are numbers in the oldest state that was kept; if so, a failure is replayed from it."""
        state, is_finite, ready = self._kept.popleft()
        wait_for(ready)
        if is_finite:
            self._good = state
        return bool(is_finite)

    @contextmanager
    def step(self, data: TrainingData, at: RunState) -> Iterator[None]:
        """Around the step that follows `at`: turns a lack of memory into the error that ends the run."""
        try:
            with out_of_memory():
                yield
        except MemoryError as error:
            why, end = f"out of memory ({error}); {SMALLER}", at.position + data.global_batch_size
            raise self.ended(data, why, step=at.step, epoch=at.epoch, end=end, alone=True) from None

    def ended(
        self, data: TrainingData, why: str, *, step: int, epoch: int, end: int, alone: bool = False
    ) -> ValueError:
        """`at_step` for the step of this epoch that ends at a position."""
        return self.at_step(data.feed, why, step=step, epoch=epoch, start=end - data.global_batch_size, alone=alone)

    def at_step(self, feed: Feed, why: str, *, step: int, epoch: int, start: int, alone: bool = False) -> ValueError:
        """Write the file, and answer the error to raise: the step, its samples and what to do.

        `start`: the position at which the step's global batch begins. `alone`: the other ranks may not be here, so each
        that is writes a file; else rank 0 does for all.
        """
        ids = feed.sample_ids(epoch, [Span(start, feed.global_batch_size, start + feed.global_batch_size)]).tolist()
        rank = self._world.rank if alone else 0
        path = self._run_dir / (f"failed-step-{step:08}-rank-{rank}.pt" if rank else f"failed-step-{step:08}.pt")
        state = f"the state before it is in {path}: look at it with train.py replay {path}"
        if self._world.rank == rank:
            failed = {"step": step, "epoch": epoch, "start": start, "why": why, "sample_ids": ids}
            failed |= {"world_size": self._world.world_size, "batch_size": feed.batch_size}
            try:
                checkpoint.save(path, at_rest(self._good, mark(self._world.device)) | self._about | {"failed": failed})
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                what = getattr(error, "strerror", None) or str(error).partition("\n")[0]
                state = f"the state before it cannot be written ({what})"
        shown = ", ".join(map(str, ids[:_SHOWN_IDS])) + (
            f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        )
        return ValueError(f"step {step} (epoch {epoch}, position {start}): {why}; samples {shown}; {state}")


def finite(net: nn.Module) -> Tensor:
    """A bool on the device: whether all weights are numbers, by their joint 2-norm, in a handful of kernels.

    A norm over 1.8e19, float32's limit for squares, counts as none.
    """
    return torch.nn.utils.get_total_norm([weights.detach() for weights in net.parameters()]).isfinite()


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turns torch's ways of saying so, on GPU and CPU, into one MemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error).partition(". ")[0]) from None
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise MemoryError("the CPU's memory is full") from None
