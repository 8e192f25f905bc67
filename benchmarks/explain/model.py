"""The model of a joined rate: what each stage takes alone → what they allow together, and which one limits.

A stage that runs alone, with all that it may use, takes `clock_s` seconds an image by the clock (its ceiling is
1 / clock_s images/s) and `cpu_s` CPU seconds an image over all threads.

On a CPU everything shares the cores, and three things bound the joined rate; the slowest holds:

    decode threads   decode.clock_s + resize.clock_s     both run in them, one after the other
    main thread      read.clock_s + compute.clock_s      plans and hands over a batch, then trains on one
    cores            (sum of all stages' cpu_s) / cores  CPU seconds add up, whoever spends them

With several ranks the exchange of gradients runs beside the backward pass: a fourth bound. On a GPU the stages have
engines of their own and overlap, so the slowest one is the ceiling. The GPU's decoding and training share its
multiprocessors in truth: there the model is an upper bound.

The bottleneck is the stage with the lowest ceiling; another's headroom is its ceiling in units of the bottleneck's. A
setting changes what stages take by known factors, and its expected gain is the ratio of the joined rates.
"""

from collections.abc import Mapping
from typing import NamedTuple

LOADING = ("read", "decode", "resize")
STAGES = (*LOADING, "h2d", "compute", "communication")

Factors = Mapping[str, tuple[float, float]]  # stage → what becomes of its clock_s and of its cpu_s


class Cost(NamedTuple):
    """What one image takes of a stage alone: seconds by the clock, and CPU seconds over all threads and ranks."""

    clock_s: float
    cpu_s: float


class Model(NamedTuple):
    """costs: of the stages that there are, by name. cores: that all ranks together may use."""

    costs: Mapping[str, Cost]
    cores: float
    on_gpu: bool

    def bounds(self, stages: tuple[str, ...] = STAGES) -> dict[str, float]:
        """What bounds these stages when they run together → seconds an image that it takes."""
        costs = {stage: cost for stage, cost in self.costs.items() if stage in stages}
        if self.on_gpu:
            return {stage: cost.clock_s for stage, cost in costs.items()}

        def clock(*names: str) -> float:
            return sum(costs[name].clock_s for name in names if name in costs)

        return {
            "decode threads": clock("decode", "resize"),
            "main thread": clock("read", "compute"),
            "cores": sum(cost.cpu_s for cost in costs.values()) / self.cores,
            "communication": clock("communication"),
        }

    def rate(self, stages: tuple[str, ...] = STAGES) -> float:
        """Images/s that these stages allow together."""
        return 1 / max(self.bounds(stages).values())

    @property
    def bottleneck(self) -> str:
        return max(self.costs, key=lambda stage: self.costs[stage].clock_s)

    def headroom(self) -> dict[str, float]:
        """Stage → its ceiling in units of the bottleneck's, for all but that; the tightest first."""
        slowest = self.bottleneck
        ratios = {
            stage: self.costs[slowest].clock_s / cost.clock_s
            for stage, cost in self.costs.items()
            if stage != slowest
        }  # fmt: skip
        return dict(sorted(ratios.items(), key=lambda item: item[1]))

    def changed(self, factors: Factors) -> "Model":
        """The model with some stages' costs multiplied."""
        costs = dict(self.costs)
        for stage, (clock, cpu) in factors.items():
            if stage in costs:
                costs[stage] = Cost(costs[stage].clock_s * clock, costs[stage].cpu_s * cpu)
        return self._replace(costs=costs)

    def gain(self, *changes: Factors) -> float:
        """How many times as fast training is expected to be with these changes."""
        model = self
        for factors in changes:
            model = model.changed(factors)
        return model.rate() / self.rate()
