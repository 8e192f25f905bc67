"""Programs under torchrun: all ranks at the same time, and rank 0 alone while the others wait.

Every rank gets the same samples, so all ranks make the same decisions, for example when to end the warm-up.
"""

import statistics
from collections.abc import Callable
from time import monotonic

import torch

from penstock.benchmarks.measure import Program, Sample
from penstock.training import distributed
from penstock.training.distributed import World


class Together:
    """A program that every rank runs. A sample has the sum of the ranks' images/s, and means of the other figures."""

    def __init__(self, program: Program, world: World) -> None:
        self.name, self._program, self._world = program.name, program, world
        self.per_rank: list[list[float]] = []  # images/s of each rank, for each run so far

    def run(self, seconds: float) -> Sample:
        distributed.from_rank_0(0.0, self._world)  # begin together
        sample = self._program.run(seconds)
        self.per_rank.append(_gathered(sample.images_per_s, self._world))
        wait, ahead = (statistics.fmean(_gathered(one, self._world)) for one in (sample.data_wait, sample.ahead))
        return Sample(sum(self.per_rank[-1]), wait, ahead)

    def close(self) -> None:
        self._program.close()


class Alone:
    """A program that only rank 0 runs. On the others `program` is None: they wait and receive the sample."""

    def __init__(self, name: str, program: Program | None, world: World) -> None:
        self.name, self._program, self._world = name, program, world

    def run(self, seconds: float) -> Sample:
        distributed.from_rank_0(0.0, self._world)  # the other ranks have finished their work
        sample = self._program.run(seconds) if self._program else Sample(0.0)
        return Sample(*(distributed.from_rank_0(value, self._world) for value in sample))

    def close(self) -> None:
        if self._program:
            self._program.close()


def shared_clock(world: World) -> Callable[[], float]:
    """Return a clock that all ranks read at once: rank 0's."""
    return lambda: distributed.from_rank_0(monotonic(), world)


def _gathered(value: float, world: World) -> list[float]:
    values = torch.zeros(world.world_size, dtype=torch.float64)
    values[world.rank] = value
    gathered: list[float] = distributed.sum_tensor(values).tolist()
    return gathered
