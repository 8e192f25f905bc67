"""Write `RUN/failed-step-N.pt` if a step fails: the state before it and its samples, for `train.py replay`."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from penstock.pipeline.feed import Feed
from penstock.pipeline.plan import Span
from penstock.shards.program import TRAIN
from penstock.training import checkpoint
from penstock.training.checkpoint import About, Captured, FailedState, FailedStep
from penstock.training.clock import Mark, mark, wait_for
from penstock.training.data import TrainingData
from penstock.training.distributed import World
from penstock.training.learner import RunState
from penstock.training.refusal import first_line
from penstock.training.snapshot import at_rest, snapshot, to_cpu

_SHOWN_IDS = 8
SMALLER = "lower train.global_batch_size or raise train.accumulation"


class Failure:
    """Keeps a copy of the run's last good state on the device, updated once per log interval.

    Losses are checked once per interval, so the copy may be several steps older than the failed step. The replay
    repeats the steps in between, by the plan. Nothing here waits for the device except `is_well`, and in fp16 reading
    the state of the loss scaler.
    """

    def __init__(self, run_dir: Path, world: World, capture: Callable[[], Captured], about: About) -> None:
        """`capture` returns the part of the state that steps change. `about` is the rest (`training.learner`)."""
        self._run_dir, self._world, self._capture, self._about = run_dir, world, capture, about
        self._good: Captured | None = None
        self._kept: deque[tuple[Captured, Tensor, Mark]] = deque()

    def all_is_well(self) -> None:
        """Mark the current state as good. A later failure is replayed from it."""
        self._good = snapshot(self._capture())

    def keep(self, net: nn.Module) -> None:
        """Copy the current state at the end of an interval, until `is_well` checks it."""
        self._kept.append((snapshot(self._capture()), to_cpu(finite(net)), mark(self._world.device)))

    def is_well(self) -> bool:
        """Whether the weights in the oldest copy are finite. If so, a later failure is replayed from it."""
        state, is_finite, ready = self._kept.popleft()
        wait_for(ready)
        if is_finite:
            self._good = state
        return bool(is_finite)

    @contextmanager
    def step(self, data: TrainingData, state: RunState) -> Iterator[None]:
        """Wrap the step that follows `state`: turn running out of memory into the error that ends the run."""
        try:
            with out_of_memory():
                yield
        except MemoryError as error:
            why, end = f"out of memory ({error}); {SMALLER}", state.position + data.global_batch_size
            raise self.error(data.feed, why, step=state.step, epoch=state.epoch, end=end, alone=True) from None

    def error(self, feed: Feed, why: str, *, step: int, epoch: int, end: int, alone: bool = False) -> ValueError:
        """Write the file, and return the error to raise: the step, its samples and what to do.

        `end`: the position at which the step's global batch ends. `alone`: the other ranks may not get here, so every
        rank that does writes a file. Otherwise rank 0 writes one for all.
        """
        start = end - feed.global_batch_size
        ids = feed.sample_ids(epoch, [Span(start, feed.global_batch_size, end)]).tolist()
        failed: FailedStep = {
            "step": step,
            "epoch": epoch,
            "start": start,
            "why": why,
            "sample_ids": ids,
            "world_size": self._world.world_size,
            "batch_size": feed.batch_size,
        }
        shown = ", ".join(map(str, ids[:_SHOWN_IDS]))
        if len(ids) > _SHOWN_IDS:
            shown += f" and {len(ids) - _SHOWN_IDS} more"
        place = f"step {step} (epoch {epoch}, position {start})"
        return ValueError(f"{place}: {why}; samples {shown}; {self._written(failed, alone)}")

    def _written(self, failed: FailedStep, alone: bool) -> str:
        """Write the state before the step, if this rank has to, and return a text about where it is."""
        assert self._good is not None, "all_is_well comes before the first step"
        rank = self._world.rank if alone else 0
        suffix = f"-rank-{rank}" if rank else ""
        path = self._run_dir / f"failed-step-{failed['step']:08}{suffix}.pt"
        if self._world.rank == rank:
            good = at_rest(self._good, mark(self._world.device))
            state: FailedState = {**good, **self._about, "failed": failed}
            try:
                checkpoint.save(path, state)
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                return f"the state before the step cannot be written ({first_line(error)})"
        return f"the state before the step is in {path}. To investigate: {TRAIN} replay {path}"


def finite(net: nn.Module) -> Tensor:
    """A bool on the device: whether all weights are finite. It takes a few kernels, which compute their joint 2-norm.

    A norm over 1.8e19, float32's limit for squares, counts as infinite.
    """
    return torch.nn.utils.get_total_norm([weights.detach() for weights in net.parameters()]).isfinite()


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn torch's various out-of-memory errors, on GPU and CPU, into a MemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error).partition(". ")[0]) from None
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise MemoryError("the CPU's memory is full") from None
