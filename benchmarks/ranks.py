"""Programs under torchrun: all ranks at the same time, and rank 0 alone while the others wait.

Samples are the same on every rank, so that each of them comes to the same decisions, in the warm-up for one.
"""

import statistics
from collections.abc import Callable
from time import monotonic

import torch

from penstock.benchmarks.measure import Program, Sample
from penstock.training import distributed
from penstock.training.distributed import World


class Together:
    """Every rank runs its program. A sample is of all: the sum of the ranks' images/s, the means of the rest."""

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
    """Rank 0 runs its program, which is None on the others: they wait, and learn the sample."""

    def __init__(self, name: str, program: Program | None, world: World) -> None:
        self.name, self._program, self._world = name, program, world

    def run(self, seconds: float) -> Sample:
        distributed.from_rank_0(0.0, self._world)  # the others have ended what they did
        sample = self._program.run(seconds) if self._program else Sample(0.0)
        return Sample(*(distributed.from_rank_0(value, self._world) for value in sample))

    def close(self) -> None:
        if self._program:
            self._program.close()


def shared_clock(world: World) -> Callable[[], float]:
    """Rank 0's clock, read by all ranks at once."""
    return lambda: distributed.from_rank_0(monotonic(), world)


def _gathered(value: float, world: World) -> list[float]:
    values = torch.zeros(world.world_size, dtype=torch.float64)
    values[world.rank] = value
    gathered: list[float] = distributed.sum_tensor(values).tolist()
    return gathered
