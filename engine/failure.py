"""A step that failed → `RUN/failed-step-N.pt`: the state before it and its samples, for `train.py replay`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.feed import Feed
from pipeline.plan import Span
from training import checkpoint
from training.distributed import World
from training.snapshot import snapshot, to_cpu

_SHOWN_IDS = 8


class Failure:
    """Keeps a copy of the run's state from the last time that all was well: once a log interval, on the device.

    The losses are looked at once an interval, so the copy is of a step before the failed one; the steps between are
    made again by the replay, from the plan.
    """

    def __init__(self, run_dir: Path, world: World, capture: Callable[[], dict[str, Any]]) -> None:
        self._run_dir, self._world, self._capture = run_dir, world, capture
        self._before: dict[str, Any] = {}

    def all_is_well(self) -> None:
        """The state is good as it is now: what a failure after this is replayed from."""
        self._before = snapshot(self._capture())

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
                checkpoint.save(path, to_cpu(self._before) | {"failed": failed})
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                what = getattr(error, "strerror", None) or str(error).partition("\n")[0]
                state = f"the state before it cannot be written ({what})"
        shown = ", ".join(map(str, ids[:_SHOWN_IDS])) + (
            f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        )
        return ValueError(f"step {step} (epoch {epoch}, position {start}): {why}; samples {shown}; {state}")


def is_finite(net: nn.Module) -> bool:
    """Whether all weights are numbers. Waits for the GPU, once."""
    return bool(torch.stack([weights.detach().isfinite().all() for weights in net.parameters()]).all())


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
