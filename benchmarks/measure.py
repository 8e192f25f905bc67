"""How anything is timed: programs → warm-up to a steady state → repeats in turn → samples, and ratios of them.

A machine's speed drifts, by clocks and by its other users. So programs that are compared run in turn, A B C A B C …,
and a ratio is taken repeat by repeat: what drifts slower than a round cancels.
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from penstock.benchmarks.text import shown_rate

STEADY_TURNS = 3
STEADY = 0.05  # how far the last turns may lie from their median
RESAMPLED = 10_000
CONFIDENCE = 0.95


class Sample(NamedTuple):
    """One repeat of one program."""

    images_per_s: float
    data_wait: float = 0.0  # share of the time spent waiting for data, 0 to 1
    ahead: float = 0.0  # batches' worth of work that a GPU had still to do when the CPU had asked for the last of it


class Program(Protocol):
    """What can be timed."""

    name: str

    def run(self, seconds: float) -> Sample:
        """Work for about so long, and count images. What stands decoded already when it begins must not count."""

    def close(self) -> None: ...


class Ratio(NamedTuple):
    """Of two programs' rates, repeat by repeat: the median, the bootstrap interval of it, the least and the most."""

    median: float
    low: float
    high: float
    min: float
    max: float


class Unsteady(UserWarning):
    """A program was measured before its speed had settled."""


def is_steady(rates: Sequence[float]) -> bool:
    """Whether the last three lie within 5 % of their median and do not rise from each to the next."""
    last = rates[-STEADY_TURNS:]
    if len(last) < STEADY_TURNS:
        return False
    middle = statistics.median(last)
    rising = all(a < b for a, b in pairwise(last))
    return not rising and all(abs(rate - middle) <= STEADY * middle for rate in last)


def warm_up(
    program: Program, turn_s: float = 1.0, limit_s: float = 30.0, clock: Callable[[], float] = monotonic
) -> list[float]:
    """Run the program in turns until it is steady. Returns the turns' images/s.

    The first turn also builds and compiles what the program needs: `limit_s` counts from its end. When that is over,
    an `Unsteady` warning says so and the measuring goes on.
    """
    rates = [program.run(turn_s).images_per_s]
    started = clock()
    while not is_steady(rates):
        if clock() - started >= limit_s:
            last = ", ".join(shown_rate(rate) for rate in rates[-STEADY_TURNS:])
            message = f"{program.name}: not steady after {limit_s:g} s of warm-up (last turns: {last} images/s)"
            warnings.warn(message, Unsteady, stacklevel=2)
            break
        rates.append(program.run(turn_s).images_per_s)
    return rates


def in_turn(
    programs: Sequence[Program], seconds: float, repeats: int, clock: Callable[[], float] = monotonic
) -> dict[str, list[Sample]]:
    """Warm up each program, then run them A B C A B C …, `seconds` each, so often. Returns the repeats of each name.

    Short repeats have a short warm-up: turns of a second at most, for ten repeats' time at most.
    """
    for program in programs:
        warm_up(program, min(1.0, seconds), min(30.0, 10 * seconds), clock)
    samples: dict[str, list[Sample]] = {program.name: [] for program in programs}
    for _ in range(repeats):
        for program in programs:
            samples[program.name].append(program.run(seconds))
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of two programs that ran in turn, repeat by repeat.

    The interval is the percentile bootstrap's for the median (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13), with a fixed seed. Up to five repeats it is the range, which covers the true median with
    probability 1 - 2^(1-n): 0.75 for three, 0.94 for five. For six to twenty it covers 0.87 to 0.94 in simulations.

    Raises ValueError where the two do not have the same number of repeats, or none.
    """
    ratios = np.array([a / b for a, b in zip(ours, theirs, strict=True)])
    if not len(ratios):
        raise ValueError("a ratio needs at least one repeat")
    drawn = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLED, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(float(np.median(ratios)), float(low), float(high), float(ratios.min()), float(ratios.max()))
